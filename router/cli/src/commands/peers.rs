//! `wormholes peers` and `peer add | invite | remove`.

use wormholes_proto::{
    CarrierKind, Roles,
    control::{
        Call, InviteReport, NoParams, PeerAddParams, PeerInfo, PeerList, PeerParams, PeerPath,
        PeerSource,
    },
};

use super::Context;
use crate::{
    args::PeerCommand,
    error::CliError,
    format,
    output::{Style, Tone},
    table::{Cell, Table},
};

pub(super) fn run(context: &mut Context<'_>, command: PeerCommand) -> Result<(), CliError> {
    match command {
        PeerCommand::Add {
            invite,
            name,
            trust,
        } => context.show(
            &Call::PeerAdd(PeerAddParams {
                invite,
                name,
                trust: Some(trust),
            }),
            |peer: &PeerInfo, _| {
                format!(
                    "added {} (trust {}): {}\n",
                    format::clean(&peer.name),
                    peer.trust,
                    peer.id
                )
            },
        ),
        PeerCommand::Invite => invite(context),
        PeerCommand::Remove { peer } => context.show(
            &Call::PeerRemove(PeerParams { peer }),
            |peer: &PeerInfo, _| format!("removed {}: {}\n", format::clean(&peer.name), peer.id),
        ),
    }
}

pub(super) fn render(list: &PeerList, style: Style) -> String {
    if list.peers.is_empty() {
        return "no peers; `wormholes peer add INVITE` adds one\n".to_owned();
    }
    let mut table = Table::new(&[
        "NAME",
        "STATE",
        ">RTT",
        ">LOSS",
        ">LOAD",
        "TRUST",
        "ROLES",
        "FROM",
        "~REACHED AT",
    ]);
    for peer in &list.peers {
        table.row(row(peer));
    }
    table.render(style)
}

fn row(peer: &PeerInfo) -> [Cell; 9] {
    let measured = |text: String| if peer.online { text } else { "-".to_owned() };
    let rtt = peer.rtt_ms.unwrap_or_default();
    let source = match peer.source {
        PeerSource::Config => "config",
        PeerSource::Added => "added",
        PeerSource::Learned => "learned",
    };
    [
        peer.name.as_str().into(),
        state(peer),
        measured(format!("{rtt:.1} ms")).into(),
        measured(format!("{:.1} %", peer.loss * 100.0)).into(),
        measured(format!("{:.0} %", peer.load * 100.0)).into(),
        trust(peer.trust).into(),
        roles(peer.roles).into(),
        source.into(),
        reached_at(peer).into(),
    ]
}

/// Whether a connection stands; where none has to, how the node is reached when a flow needs it.
fn state(peer: &PeerInfo) -> Cell {
    let is_learned = peer.source == PeerSource::Learned;
    if peer.online {
        let over = peer.carrier.map_or("", CarrierKind::as_str);
        let by = match peer.path {
            PeerPath::Tor => ", by Tor",
            PeerPath::Direct | PeerPath::Relay | PeerPath::None => "",
        };
        Cell::toned(Tone::Good, &format!("connected ({over}{by})"))
    } else if is_learned && peer.roles.hop && !peer.addresses.is_empty() {
        Cell::toned(Tone::Plain, "as hop")
    } else if !peer.relays.is_empty() {
        // Why there is no direct path, where one was to be made.
        let punch = peer.punch.as_ref().map(|punch| &punch.reason);
        let why = punch.map_or(String::new(), |reason| {
            format!(" ({})", format::clean(reason))
        });
        Cell::toned(Tone::Plain, &format!("by relay{why}"))
    } else {
        Cell::toned(Tone::Faint, "offline")
    }
}

/// The number that scripts compare, and its word.
fn trust(trust: u8) -> String {
    match trust {
        0 => "0 stranger".to_owned(),
        1 => "1 friend of a friend".to_owned(),
        2 => "2 friend".to_owned(),
        3 => "3 own device".to_owned(),
        other => other.to_string(),
    }
}

fn roles(roles: Roles) -> String {
    let names: Vec<&str> = [
        (roles.relay, "relay"),
        (roles.hop, "hop"),
        (roles.exit, "exit"),
    ]
    .into_iter()
    .filter_map(|(offered, name)| offered.then_some(name))
    .collect();
    if names.is_empty() {
        "-".to_owned()
    } else {
        names.join(",")
    }
}

fn reached_at(peer: &PeerInfo) -> String {
    let sockets = peer.addresses.iter().map(ToString::to_string);
    let addresses = sockets.chain(peer.onions.iter().cloned());
    let relays = peer.relays.iter().map(|relay| format!("via {relay}"));
    format::list(addresses.chain(relays), "-")
}

/// The invite alone on standard output, so that it can be copied and piped; what stands in its way
/// goes to standard error.
fn invite(context: &mut Context<'_>) -> Result<(), CliError> {
    let call = Call::PeerInvite(NoParams {});
    let report: InviteReport = context.connect()?.report(&call)?;
    context
        .output
        .report(&report, |_| format!("{}\n", format::clean(&report.invite)))?;
    context.output.notes(&report.hints)
}

#[cfg(test)]
mod tests {
    use wormholes_proto::{NodeId, control::FailedPunch};

    use super::*;

    /// One of each kind.
    fn all() -> Vec<PeerInfo> {
        let bob = PeerInfo {
            name: "bob".to_owned(),
            id: NodeId::from_bytes([1; 32]),
            source: PeerSource::Config,
            trust: 2,
            online: true,
            carrier: Some(CarrierKind::Quic),
            path: PeerPath::Direct,
            punch: None,
            rtt_ms: Some(12.345),
            loss: 0.015,
            load: 0.4,
            addresses: vec!["203.0.113.5:4433".parse().unwrap()],
            onions: Vec::new(),
            relays: vec!["harbour".to_owned()],
            roles: Roles {
                relay: true,
                hop: false,
                exit: true,
            },
            family: None,
        };
        let stranger = PeerInfo {
            name: "\u{1b}[31mev".to_owned(),
            trust: 0,
            online: false,
            path: PeerPath::None,
            source: PeerSource::Learned,
            addresses: Vec::new(),
            relays: Vec::new(),
            roles: Roles::default(),
            ..bob.clone()
        };
        let behind_nat = PeerInfo {
            name: "dora".to_owned(),
            trust: 1,
            online: false,
            path: PeerPath::Relay,
            punch: Some(FailedPunch {
                reason: "no-answer".to_owned(),
                why: "nothing came through".to_owned(),
                ago_seconds: 3,
                retry_seconds: 27,
            }),
            addresses: Vec::new(),
            roles: Roles::default(),
            ..bob.clone()
        };
        let hop = PeerInfo {
            name: "hop".to_owned(),
            relays: Vec::new(),
            addresses: bob.addresses.clone(),
            roles: Roles {
                hop: true,
                ..Roles::default()
            },
            ..stranger.clone()
        };
        vec![bob, behind_nat, stranger, hop]
    }

    #[test]
    fn peers_are_a_table() {
        let peers = all();
        let text = render(&PeerList { peers }, Style::default());
        let expected = "\
NAME     STATE                     RTT   LOSS  LOAD  TRUST                 ROLES       FROM     REACHED AT
bob      connected (quic)      12.3 ms  1.5 %  40 %  2 friend              relay,exit  config   203.0.113.5:4433, via harbour
dora     by relay (no-answer)        -      -     -  1 friend of a friend  -           config   via harbour
\u{fffd}[31mev  offline                     -      -     -  0 stranger            -           learned  -
hop      as hop                      -      -     -  0 stranger            hop         learned  203.0.113.5:4433
";
        assert_eq!(text, expected);
    }
}
