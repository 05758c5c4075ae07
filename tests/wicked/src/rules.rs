//! Facts and questions that the rules' side must not take from it.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use wormholes_plugin::{Context, Error, Reply, Request, Result};

use crate::flood;

const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn command(cx: &mut Context, request: &Request) -> Result<Reply> {
    match request.name.as_str() {
        "facts" => Reply::done(&flood(|n| cx.set_fact("mood", &id(n), 1, HOUR))),
        "foreign-fact" => cx
            .set_fact("credit", &id(1), 1, HOUR)
            .and_then(|()| Reply::done("it made credit")),
        "foreign-hook" => {
            cx.ask_rules("route", &BTreeMap::<String, u8>::new())?;
            Reply::done("it asked")
        }
        "deep-question" => {
            let deep = (0..20).fold(json!({}), |deep, _| json!({ "in": deep }));
            cx.ask_rules("wicked_hook", &deep)?;
            Reply::done("it asked")
        }
        "wild-question" => {
            let wild = "x".repeat(1 << 20);
            cx.ask_rules("wicked_hook", &BTreeMap::from([("text", wild)]))?;
            Reply::done("it asked")
        }
        _ => Err(Error::not_found("not wicked enough")),
    }
}

/// Of somebody.
fn id(number: u64) -> [u8; 32] {
    let mut id = [7; 32];
    id[..8].copy_from_slice(&number.to_be_bytes());
    id
}
