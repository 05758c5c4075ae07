//! SAM, the client's side of each kind of connection with whatever a router sends.

use wormholes_proto::{
    Host,
    sam::{
        Destination, DestinationKeys, I2pName, MAX_SAM_LINE_BYTES, SamClient, SamRequest, SamState,
        SessionId, TunnelSettings,
    },
};

use super::input::{Input, pieces};

/// How a connection went.
#[derive(Debug, PartialEq)]
struct Talked {
    sent: Vec<u8>,
    session: Option<DestinationKeys>,
    /// None: more is needed, or awaited.
    end: Option<SamState>,
    /// What belongs to the stream.
    rest: Vec<u8>,
}

/// A router's side, to a client.
pub fn sam_client(input: &[u8]) {
    let mut input = Input::new(input);
    let (choice, piece_bytes) = (input.byte(), input.byte());
    let request = request(choice);
    let sent = input.rest();
    let whole = talk(&request, [sent].into_iter());
    let cut = talk(&request, pieces(sent, piece_bytes));
    assert_eq!(whole, cut, "pieces say something else");
    let lines = whole.sent.split(|byte| *byte == b'\n');
    assert!(lines.clone().all(|line| line.len() < MAX_SAM_LINE_BYTES));
    if let Some(keys) = whole.session {
        let again = DestinationKeys::parse(keys.secret_text());
        assert_eq!(again.as_ref(), Ok(&keys));
        check(keys.destination());
    }
    match whole.end {
        Some(SamState::Called(caller)) => {
            check(&caller);
            assert!(sent.ends_with(&whole.rest), "the stream has other bytes");
        }
        Some(SamState::Connected) => {
            assert!(sent.ends_with(&whole.rest), "the stream has other bytes");
        }
        Some(
            SamState::NeedMore
            | SamState::Waiting
            | SamState::Greeted
            | SamState::Found
            | SamState::Session(_)
            | SamState::Failed(_),
        )
        | None => {}
    }
}

fn check(destination: &Destination) {
    let again = Destination::parse(destination.as_str());
    assert_eq!(again.as_ref(), Ok(destination));
    let name = Host::parse(destination.short_name()).unwrap();
    let name = I2pName::of(&name).unwrap();
    assert_eq!(name.as_str(), destination.short_name());
}

fn request(choice: u8) -> SamRequest {
    let session = SessionId::from_random([choice; 16]);
    match choice % 5 {
        0 => SamRequest::Session {
            id: session,
            keys: None,
            tunnels: TunnelSettings {
                length: choice % 8,
                quantity: 1 + choice % 16,
            },
        },
        1 => SamRequest::Connect {
            session,
            to: I2pName::of(&Host::parse("a.i2p").unwrap()).unwrap(),
            port: 80,
        },
        2 => SamRequest::Accept { session },
        3 => SamRequest::Greeting,
        _ => SamRequest::Lookup {
            name: I2pName::of(&Host::parse("a.i2p").unwrap()).unwrap(),
        },
    }
}

fn talk<'a>(request: &SamRequest, sent: impl Iterator<Item = &'a [u8]>) -> Talked {
    let (mut client, hello) = SamClient::new(request.clone());
    let mut talked = Talked {
        sent: hello.to_vec(),
        session: None,
        end: None,
        rest: Vec::new(),
    };
    for piece in sent {
        talked.rest.extend_from_slice(piece);
        while talked.end.is_none() {
            let step = client.handle_input(&talked.rest);
            talked.rest.drain(..step.consumed);
            talked.sent.extend(step.send);
            match step.state {
                SamState::NeedMore | SamState::Waiting => {
                    assert!(talked.rest.len() < MAX_SAM_LINE_BYTES, "it stalls");
                    break;
                }
                SamState::Session(keys) => {
                    assert_eq!(talked.session, None, "a second session");
                    talked.session = Some(keys);
                }
                end @ (SamState::Greeted
                | SamState::Found
                | SamState::Connected
                | SamState::Called(_)
                | SamState::Failed(_)) => {
                    talked.end = Some(end);
                }
            }
        }
    }
    if let Some(SamState::Failed(_)) = talked.end {
        talked.rest.clear();
    }
    talked
}
