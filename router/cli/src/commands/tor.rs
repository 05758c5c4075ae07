//! `wormholes tor`: Tor as this node uses it.

use wormholes_proto::control::{
    Call, NoParams, TorCircuits, TorReport, TorService, TorServiceParams, TorState,
};

use super::{Context, field};
use crate::{args::TorCommand, error::CliError, format, output::Style};

pub(super) fn run(context: &mut Context<'_>, command: TorCommand) -> Result<(), CliError> {
    match command {
        TorCommand::Status => context.show(&Call::TorStatus(NoParams {}), render),
        TorCommand::Start => context.show(&Call::TorStart(NoParams {}), render),
        TorCommand::Stop => context.show(&Call::TorStop(NoParams {}), render),
        TorCommand::NewIdentity => context.show(&Call::TorNewIdentity(NoParams {}), render),
        TorCommand::NewOnion { service } => {
            let params = TorServiceParams { service };
            context.show(&Call::TorNewOnion(params), render_service)
        }
        TorCommand::Circuits => context.show(&Call::TorCircuits(NoParams {}), render_circuits),
    }
}

fn render(report: &TorReport, style: Style) -> String {
    let field = |name: &str, value: &str| field(style, name, value);
    let mut text = field("state", &state(report.state, report.progress_percent));
    match report.state {
        TorState::Absent => {
            text += &field("", "this wormholed was built without the feature `tor`");
            return text;
        }
        TorState::Disabled => {
            text += &field("", "`enabled = true` under [tor] turns it on");
            return text;
        }
        TorState::Stopped | TorState::Starting | TorState::Ready | TorState::Failed => {}
    }
    for problem in [&report.blocked, &report.error].into_iter().flatten() {
        text += &field("", problem);
    }
    if report.private_network {
        text += &field("network", "one of its own, by [tor.network]");
    }
    if report.bridges > 0 {
        text += &field("bridges", &report.bridges.to_string());
    }
    text += &field("identity", &report.identity.to_string());
    text += &field("streams", &report.streams.to_string());
    for service in &report.services {
        text += &render_service(service, style);
    }
    text
}

/// How far it is, too, on its way into the network.
pub(super) fn state(state: TorState, percent: u8) -> String {
    match state {
        TorState::Starting => format!("starting, {percent} %"),
        TorState::Absent
        | TorState::Disabled
        | TorState::Stopped
        | TorState::Ready
        | TorState::Failed => state.as_str().to_owned(),
    }
}

fn render_service(service: &TorService, style: Style) -> String {
    let address = match &service.address {
        Some(address) => format!("{address}:{}", service.port),
        None => "its address is for operators, once it has one".to_owned(),
    };
    let clients = match service.clients {
        0 => String::new(),
        clients => format!(", for {clients} clients"),
    };
    let value = format!(
        "{}: {address}, {}{clients}",
        service.name,
        service.state.as_str()
    );
    let mut text = field(style, "service", &value);
    if let Some(problem) = &service.problem {
        text += &field(style, "", problem);
    }
    text
}

fn render_circuits(report: &TorCircuits, style: Style) -> String {
    if report.circuits.is_empty() {
        return field(style, "circuits", "none carried a stream");
    }
    let circuits = report.circuits.iter().map(|circuit| {
        let streams = format!("{} streams, {} in all", circuit.streams, circuit.opened);
        let relays = format::list(&circuit.relays, "its relays are not told");
        field(
            style,
            "circuit",
            &format!("{}: {streams}; {relays}", circuit.id),
        )
    });
    circuits.collect()
}

#[cfg(test)]
mod tests {
    use wormholes_proto::control::{TorCircuit, TorServiceState};

    use super::*;

    fn report(state: TorState) -> TorReport {
        TorReport {
            state,
            progress_percent: 15,
            blocked: Some("no consensus".to_owned()),
            error: None,
            identity: 2,
            streams: 3,
            bridges: 0,
            private_network: true,
            services: vec![TorService {
                name: "web".to_owned(),
                address: Some("abc.onion".to_owned()),
                port: 80,
                state: TorServiceState::Publishing,
                clients: 1,
                problem: None,
            }],
        }
    }

    #[test]
    fn the_way_into_the_network_and_what_is_in_it_are_shown() {
        let text = render(&report(TorState::Starting), Style::default());
        let expected = "\
state      starting, 15 %
           no consensus
network    one of its own, by [tor.network]
identity   2
streams    3
service    web: abc.onion:80, publishing, for 1 clients
";
        assert_eq!(text, expected);
        let off = render(&report(TorState::Disabled), Style::default());
        assert!(off.contains("`enabled = true` under [tor]"), "{off}");
    }

    #[test]
    fn circuits_are_shown_with_their_relays() {
        let none = render_circuits(
            &TorCircuits {
                circuits: Vec::new(),
            },
            Style::default(),
        );
        assert_eq!(none, "circuits   none carried a stream\n");
        let circuit = TorCircuit {
            id: "Circ 0.3".to_owned(),
            streams: 1,
            opened: 4,
            relays: vec!["one".to_owned(), "two".to_owned()],
        };
        let one = TorCircuits {
            circuits: vec![circuit],
        };
        let text = render_circuits(&one, Style::default());
        assert_eq!(text, "circuit    Circ 0.3: 1 streams, 4 in all; one, two\n");
    }
}
