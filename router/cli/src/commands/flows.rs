//! `wormholes flows`.

use wormholes_proto::control::{FlowInfo, FlowList};

use crate::{
    format,
    output::Style,
    table::{Cell, Table},
};

pub(super) fn render(list: &FlowList, style: Style) -> String {
    if list.flows.is_empty() {
        return "no open flows\n".to_owned();
    }
    let mut table = Table::new(&[
        ">FLOW",
        "ENTRANCE",
        "~TARGET",
        "TUNNEL",
        "~PATH",
        "~RULE",
        ">AGE",
        ">SENT",
        ">RECEIVED",
    ]);
    for flow in &list.flows {
        table.row(row(flow));
    }
    let mut text = table.render(style);
    let shown = list.flows.len() as u64;
    if list.open > shown {
        text.push_str(&format!("{} more\n", list.open - shown));
    }
    text
}

fn row(flow: &FlowInfo) -> [Cell; 9] {
    let path = if flow.path.is_empty() {
        "-".to_owned()
    } else {
        format::path(&flow.path)
    };
    [
        flow.flow.to_string().into(),
        format::entrance(&flow.entrance, &flow.network).into(),
        format::or_dash(flow.target.as_deref()).into(),
        flow.tunnel.as_deref().unwrap_or("opening").into(),
        path.into(),
        format::rule(flow.rule.as_ref()).into(),
        format::seconds(flow.age_ms / 1000).into(),
        format::bytes(flow.bytes_sent).into(),
        format::bytes(flow.bytes_received).into(),
    ]
}

#[cfg(test)]
mod tests {
    use wormholes_proto::{
        NodeId,
        control::{PathNode, RuleName},
    };

    use super::*;

    #[test]
    fn flows_are_a_table_that_says_what_it_leaves_out() {
        let node = |name: &str| PathNode {
            name: name.to_owned(),
            id: NodeId::from_bytes([1; 32]),
        };
        let list = FlowList {
            open: 3,
            flows: vec![FlowInfo {
                flow: 7,
                entrance: "socks5".to_owned(),
                network: "udp".to_owned(),
                target: Some("a.example:443".to_owned()),
                tunnel: Some("onion".to_owned()),
                path: vec![node("ada"), node("bob")],
                rule: Some(RuleName {
                    script: "default.rhai".to_owned(),
                    line: 12,
                }),
                label: None,
                age_ms: 61_000,
                bytes_sent: 2048,
                bytes_received: 10,
            }],
        };
        let expected = "\
FLOW  ENTRANCE     TARGET         TUNNEL  PATH       RULE               AGE     SENT  RECEIVED
   7  socks5, udp  a.example:443  onion   ada > bob  default.rhai:12  1m 1s  2.0 KiB      10 B
2 more
";
        assert_eq!(render(&list, Style::default()), expected);
    }
}
