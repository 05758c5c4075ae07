//! Plans in words for people; not as a script would have to write them.

use wormholes_proto::NodeId;

use super::{Plan, Step, Tunnel};

impl Plan {
    /// The whole plan on a line; `name` says what a node is called.
    pub fn text(&self, name: &dyn Fn(&NodeId) -> String) -> String {
        let steps = self.steps.iter().map(|step| step.text(name));
        let mut text = steps.collect::<Vec<_>>().join(", else ");
        if let Some(stick) = &self.stick {
            let (time, times) = (stick.time.as_millis(), stick.back_after);
            text += &format!("; sticks for {time} ms, back after {times}");
        }
        if let Some(migrate) = self.migrate {
            text += &format!("; migrates {}", migrate.as_str());
        }
        match self.closed {
            true => format!("{text} (closed)"),
            false => text,
        }
    }
}

impl Step {
    fn text(&self, name: &dyn Fn(&NodeId) -> String) -> String {
        let tunnels = self.tunnels.iter().map(|tunnel| tunnel.text(name));
        let mut text = tunnels.collect::<Vec<_>>().join(" against ");
        let marks = &self.marks;
        let times = [("timeout", marks.timeout), ("delay", marks.delay)];
        for (name, time) in times {
            if let Some(time) = time {
                text += &format!(", {name} {} ms", time.as_millis());
            }
        }
        let counts = [
            ("pad to", marks.pad_bytes.map(u64::from), "bytes"),
            ("at most", marks.bandwidth_bytes_per_s, "bytes/s"),
            ("at most", marks.max_bytes, "bytes"),
        ];
        for (name, count, unit) in counts {
            if let Some(count) = count {
                text += &format!(", {name} {count} {unit}");
            }
        }
        if let Some(carrier) = marks.carrier {
            text += &format!(", over {}", carrier.as_str());
        }
        if marks.jitter.is_some() {
            text += ", jitter";
        }
        if !marks.isolate.is_empty() {
            text += &format!(", isolated by {}", marks.isolate.join(" and "));
        }
        if let Some(label) = &marks.label {
            text += &format!(", label {label}");
        }
        text
    }
}

impl Tunnel {
    /// The tunnel in a few words; `name` says what a node is called.
    pub fn text(&self, name: &dyn Fn(&NodeId) -> String) -> String {
        let end = |to: &Option<NodeId>, exit: bool| match (to, exit) {
            (Some(to), true) => format!(" to {}, which exits", name(to)),
            (Some(to), false) => format!(" to {}", name(to)),
            (None, _) => String::new(),
        };
        let via = |via: &Option<NodeId>| {
            via.as_ref()
                .map_or(String::new(), |via| format!(" via {}", name(via)))
        };
        match self {
            Self::Direct { to, exit } => format!("direct{}", end(to, *exit)),
            Self::Relay { via: by, to, exit } => {
                format!("relay{}{}", end(&Some(*to), *exit), via(by))
            }
            Self::Punch { via: by, to, exit } => {
                format!("punch{}{}", end(&Some(*to), *exit), via(by))
            }
            Self::Onion {
                hops,
                via: by,
                to,
                exit,
                friends_only,
            } => {
                let friends = if *friends_only { " among friends" } else { "" };
                format!("onion({hops}){}{}{friends}", end(to, *exit), via(by))
            }
            Self::I2p {
                keep,
                length,
                quantity,
            } => {
                let keep = keep.as_ref().map(|name| format!(" as {name}"));
                let length = length.map(|hops| format!(", {hops} hops"));
                let quantity = quantity.map(|count| format!(", {count} tunnels"));
                let parts = [keep, length, quantity];
                parts
                    .into_iter()
                    .flatten()
                    .fold("i2p".to_owned(), |text, part| text + part.as_str())
            }
            Self::Socks { server } => format!("socks {server}"),
            Self::Tor => "tor".to_owned(),
            Self::Block { why } => format!("block: {why}"),
        }
    }
}
