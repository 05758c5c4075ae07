//! A plugin for tests: it publishes facts, asks the rules, and writes down which peers are up, what
//! scripts billed, and what other nodes put into its table as far as the rules let them.

use std::{collections::BTreeMap, time::Duration};

use data_encoding::{HEXLOWER, HEXLOWER_PERMISSIVE};
use serde_json::json;
use wormholes_plugin::{
    Address, Caller, Context, Error, Letter, Map, Place, Plugin, Reply, Request, Result, Ruling,
    Service, Usage, json as encoded, node_name, plugin,
};

/// Bytes in, bytes out, and how often it was told, by whether it was relayed, and peer.
const USED: Map<(u64, [u8; 32]), (u64, u64, u64)> = Map::new("used");
/// How far the peers that are up are trusted.
const PRESENT: Map<[u8; 32], u8> = Map::new("present");

/// What other nodes put here.
const TABLE: Map<String, String> = Map::new("table");
/// Writes that another node was asked for, and the requests that wait for them.
const ASKED: Map<u64, u64> = Map::new("asked");

/// What is written without a rule has at most so much.
const SHORT_BYTES: usize = 10;
/// How long another node may take for a write.
const PATIENCE: Duration = Duration::from_secs(20);
/// What a fact lasts by itself.
const HOUR_MS: u64 = 3_600_000;

/// The plugin.
#[derive(Debug, Default)]
pub struct Clerk;

impl Plugin for Clerk {
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        if let Caller::Plugin { from, .. } = &request.caller {
            return written(cx, from, &request);
        }
        let peer = peer(&request)?;
        match request.name.as_str() {
            "put" => {
                let row: (String, String) = (request.argument("key")?, request.argument("text")?);
                let question = Letter::new(Address::node(cx, peer), "write", encoded(&row)?);
                ASKED.set(&question.ask(cx, PATIENCE)?, &request.id)?;
                Ok(Reply::Later)
            }
            "vouch" => {
                let ms: Option<u64> = request.argument("ms")?;
                let ttl = Duration::from_millis(ms.unwrap_or(HOUR_MS));
                cx.set_fact("credit", &peer, request.argument("credit")?, ttl)?;
                match request.argument::<Option<bool>>("and-refuse")? {
                    Some(true) => Err(Error::failed("it thought better of it")),
                    _ => Reply::done("vouched"),
                }
            }
            "disown" => {
                cx.clear_fact("credit", &peer)?;
                Reply::done("disowned")
            }
            "ask" => {
                let size: u64 = request.argument("size")?;
                let question = json!({ "from": node_name(&peer), "size": size });
                Reply::done(&match cx.ask_rules("clerk_write", &question)? {
                    Ruling::None => json!("none"),
                    Ruling::Deny(why) => json!({ "deny": why }),
                    Ruling::Allow(allowed) => json!({
                        "allow": [
                            allowed.bytes_per_second,
                            allowed.max_bytes,
                            allowed.max_time.map(|time| time.as_secs()),
                            allowed.idle.map(|time| time.as_secs()),
                        ],
                    }),
                })
            }
            name => Err(Error::not_found(format!("there is no command `{name}`"))),
        }
    }

    fn answer(&mut self, cx: &mut Context, question: u64, answer: Result<Vec<u8>>) -> Result<()> {
        let Some(request) = ASKED.get(&question)? else {
            return Ok(());
        };
        ASKED.remove(&question)?;
        // Who asked may have left.
        let _ = cx.finish(request, answer);
        Ok(())
    }

    fn presence(&mut self, _: &mut Context, peer: [u8; 32], online: bool, trust: u8) -> Result<()> {
        match online {
            true => PRESENT.set(&peer, &trust),
            false => PRESENT.remove(&peer),
        }
    }

    fn usage(&mut self, _: &mut Context, usage: Vec<Usage>) -> Result<()> {
        for used in usage {
            let place = (u64::from(used.service == Service::Relay), used.peer);
            let (bytes_in, bytes_out, times) = USED.get(&place)?.unwrap_or_default();
            let sum = (
                bytes_in + used.bytes_in,
                bytes_out + used.bytes_out,
                times + 1,
            );
            USED.set(&place, &sum)?;
        }
        Ok(())
    }

    fn query(&self, _: &Context, _: &Caller, name: &str, _: &[u8]) -> Result<Vec<u8>> {
        let mut told = BTreeMap::new();
        if name == "table" {
            for (key, text) in TABLE.page(None, 1000)? {
                told.insert(key, json!(text));
            }
        } else if name == "present" {
            for (peer, trust) in PRESENT.page(None, 1000)? {
                told.insert(HEXLOWER.encode(&peer), json!(trust));
            }
        } else {
            for ((is_relayed, peer), sum) in USED.page(None, 1000)? {
                let service = if is_relayed == 1 { "relay" } else { "exit" };
                let name = format!("{service} {}", HEXLOWER.encode(&peer));
                told.insert(name, json!(sum));
            }
        }
        encoded(&told)
    }
}

/// Another node writes, if a script lets it; where none says anything, what is short.
fn written(cx: &mut Context, from: &Address, request: &Request) -> Result<Reply> {
    let Place::Node(writer) = from.place else {
        return Err(Error::denied("nodes write here"));
    };
    let (key, text): (String, String) = request.arguments()?;
    let question = json!({ "from": node_name(&writer), "key": &key, "size": text.len() });
    match cx.ask_rules("clerk_write", &question)? {
        Ruling::Deny(why) => return Err(Error::denied(why)),
        Ruling::None if text.len() > SHORT_BYTES => {
            return Err(Error::denied("no rule lets so much in"));
        }
        Ruling::None | Ruling::Allow(_) => TABLE.set(&key, &text)?,
    }
    Reply::done("written")
}

fn peer(request: &Request) -> Result<[u8; 32]> {
    let digits: String = request.argument("peer")?;
    let id = HEXLOWER_PERMISSIVE.decode(digits.as_bytes()).ok();
    let id = id.and_then(|id| id.try_into().ok());
    id.ok_or_else(|| Error::invalid("a node's id has 64 hexadecimal digits"))
}

plugin!(Clerk);
