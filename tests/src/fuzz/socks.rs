//! SOCKS, each side's handshake with whatever the other sends.

use std::net::SocketAddr;

use wormholes_proto::{
    Host, MAX_SOCKS_MESSAGE_BYTES, SocksAuth, SocksClient, SocksClientError, SocksClientState,
    SocksCredentials, SocksReply, SocksServer, SocksServerError, SocksServerState, SocksVersion,
    Target, decode_socks_datagram, encode_socks_datagram_head,
};

use super::input::{Input, pieces};

/// How a client's handshake went.
#[derive(Debug, PartialEq)]
struct Served {
    replies: Vec<u8>,
    login: Option<SocksCredentials>,
    /// None: more is needed.
    end: Option<Result<Request, SocksServerError>>,
    /// What belongs to the flow; a handshake that failed has none.
    rest: Vec<u8>,
}

/// What a client may ask for.
#[derive(Debug, PartialEq)]
enum Request {
    Connect(Target, SocksVersion, Option<String>),
    Resolve(Host),
    /// To send datagrams, from this port.
    Associate(Option<u16>),
}

/// A program's side, to an entrance.
pub fn socks_server(input: &[u8]) {
    let mut input = Input::new(input);
    let (choice, piece_bytes) = (input.byte(), input.byte());
    let auth = match choice & 1 {
        0 => SocksAuth::Label,
        _ => SocksAuth::Required,
    };
    let is_known = choice & 2 == 0;
    let sent = input.rest();
    let whole = serve(auth, is_known, [sent].into_iter());
    let cut = serve(auth, is_known, pieces(sent, piece_bytes));
    assert_eq!(whole, cut, "pieces say something else");
    assert!(sent.ends_with(&whole.rest), "the flow has other bytes");
    if let Some(Ok(Request::Connect(target, ..))) = whole.end {
        ask_for(&target, whole.login);
    }
}

fn serve<'a>(auth: SocksAuth, is_known: bool, sent: impl Iterator<Item = &'a [u8]>) -> Served {
    let mut server = SocksServer::new(auth);
    let mut served = Served {
        replies: Vec::new(),
        login: None,
        end: None,
        rest: Vec::new(),
    };
    for piece in sent {
        served.rest.extend_from_slice(piece);
        while served.end.is_none() {
            let step = server.handle_input(&served.rest);
            served.rest.drain(..step.consumed);
            served.replies.extend(step.reply);
            match step.state {
                SocksServerState::NeedMore => {
                    assert!(served.rest.len() < MAX_SOCKS_MESSAGE_BYTES, "it stalls");
                    break;
                }
                SocksServerState::CheckPassword(login) => {
                    served.login = Some(login);
                    served.replies.extend(server.handle_verdict(is_known));
                    if !is_known {
                        served.end = Some(Err(SocksServerError::Password));
                    }
                }
                SocksServerState::Request {
                    target,
                    version,
                    user,
                } => served.end = Some(Ok(Request::Connect(target, version, user))),
                SocksServerState::Resolve(host) => {
                    served.end = Some(Ok(Request::Resolve(host)));
                }
                SocksServerState::Associate(from) => {
                    served.end = Some(Ok(Request::Associate(from)));
                }
                SocksServerState::Failed(error) => served.end = Some(Err(error)),
            }
        }
    }
    if let Some(Err(_)) = served.end {
        served.rest.clear();
    }
    served
}

/// What was asked for, a client of ours can ask for too.
fn ask_for(target: &Target, login: Option<SocksCredentials>) {
    let mut server = SocksServer::new(SocksAuth::Label);
    let (mut client, mut sent) = SocksClient::new(target.clone(), login.clone());
    let mut read = None;
    loop {
        let step = server.handle_input(&sent);
        assert_eq!(step.consumed, sent.len());
        let mut reply = step.reply;
        match step.state {
            SocksServerState::NeedMore => {}
            SocksServerState::CheckPassword(login) => {
                read = Some(login);
                reply.extend(server.handle_verdict(true));
            }
            SocksServerState::Request { target: read, .. } => {
                assert_eq!(&read, target);
                break;
            }
            SocksServerState::Associate(_) | SocksServerState::Resolve(_) => {
                panic!("{target} was asked for")
            }
            SocksServerState::Failed(error) => panic!("{target} cannot be asked for: {error}"),
        }
        sent = client.handle_input(&reply).send;
    }
    assert_eq!(read, login);
}

/// A datagram of an association.
pub fn socks_datagram(input: &[u8]) {
    let Ok((target, data)) = decode_socks_datagram(input) else {
        return;
    };
    assert!(input.ends_with(data));
    let again = [&encode_socks_datagram_head(&target), data].concat();
    assert_eq!(decode_socks_datagram(&again), Ok((target, data)));
}

/// How a proxy's handshake went.
#[derive(Debug, PartialEq)]
struct Called {
    sent: Vec<u8>,
    end: Option<Result<SocketAddr, SocksClientError>>,
    rest: Vec<u8>,
}

/// An upstream proxy's side, to a tunnel.
pub fn socks_client(input: &[u8]) {
    let mut input = Input::new(input);
    let (choice, piece_bytes) = (input.byte(), input.byte());
    let login = (choice & 1 == 0).then(|| SocksCredentials::new("user", "password").unwrap());
    let sent = input.rest();
    let whole = call(login.clone(), [sent].into_iter());
    let cut = call(login, pieces(sent, piece_bytes));
    assert_eq!(whole, cut, "pieces say something else");
    if let Some(Ok(bound)) = whole.end {
        assert!(sent.ends_with(&whole.rest), "the flow has other bytes");
        let reply = [&[5, 0][..], &SocksReply::Succeeded.encode(Some(bound))].concat();
        let again = call(None, [&reply[..]].into_iter());
        assert_eq!(again.end, Some(Ok(bound)));
        assert_eq!(again.rest, b"");
    }
}

fn call<'a>(login: Option<SocksCredentials>, sent: impl Iterator<Item = &'a [u8]>) -> Called {
    let (mut client, greeting) = SocksClient::new("a.example:80".parse().unwrap(), login);
    let mut called = Called {
        sent: greeting,
        end: None,
        rest: Vec::new(),
    };
    for piece in sent {
        called.rest.extend_from_slice(piece);
        if called.end.is_some() {
            continue;
        }
        let step = client.handle_input(&called.rest);
        called.rest.drain(..step.consumed);
        called.sent.extend(step.send);
        match step.state {
            SocksClientState::NeedMore => {
                assert!(called.rest.len() < MAX_SOCKS_MESSAGE_BYTES, "it stalls");
            }
            SocksClientState::Connected(bound) => called.end = Some(Ok(bound)),
            SocksClientState::Failed(error) => called.end = Some(Err(error)),
        }
    }
    if let Some(Err(_)) = called.end {
        called.rest.clear();
    }
    called
}
