//! A plugin for tests: it holds blobs, gives those that it was told to give, and writes down what came
//! of those that it fetched.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use data_encoding::HEXLOWER_PERMISSIVE;
use serde_json::{Value, json};
use wormholes_plugin::{
    Address, Blob, BlobFetched, Caller, Context, Draft, Error, Identity, Map, Place, Plugin,
    Principal, Reply, Request, Result, json as encoded, plugin,
};

/// What is given, and how often it was asked for.
const GIVEN: Map<Blob, bool> = Map::new("given");
/// By the fetch: what it was, and what came.
const CAME: Map<u64, (Blob, std::result::Result<u64, String>)> = Map::new("came");

/// The longest part that is shown as text.
const SHOWN_BYTES: u32 = 64;

/// The plugin.
#[derive(Debug, Default)]
pub struct Courier;

impl Plugin for Courier {
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        let answer = match request.name.as_str() {
            "keep" => {
                let blob: Blob = request.argument("file")?;
                blob.hold(cx)?;
                json!({ "hash": blob, "length": blob.length(cx) })
            }
            "put" => {
                let blob = Blob::put(cx, &bytes(&request)?)?;
                if flag(&request, "and-break")? {
                    broken();
                }
                json!(blob)
            }
            "write" => write(cx, &request)?,
            "hold" => {
                let blob: Blob = request.argument("hash")?;
                blob.hold(cx)?;
                json!("held")
            }
            "drop" => {
                let blob: Blob = request.argument("hash")?;
                blob.release(cx)?;
                json!("dropped")
            }
            "give" => {
                GIVEN.set(&request.argument("hash")?, &true)?;
                json!("given")
            }
            "fetch" => json!(fetch(cx, &request)?),
            "cancel" => {
                cx.cancel_fetch(request.argument("id")?)?;
                json!("canceled")
            }
            name => return Err(Error::not_found(format!("there is no command `{name}`"))),
        };
        if flag(&request, "and-refuse")? {
            return Err(Error::failed("it thought better of it"));
        }
        Reply::done(&answer)
    }

    fn query(&self, cx: &Context, _: &Caller, name: &str, body: &[u8]) -> Result<Vec<u8>> {
        let arguments: Value = serde_json::from_slice(body).unwrap_or_default();
        let hash = || {
            let hash = arguments.get("hash").and_then(Value::as_str);
            hash.unwrap_or_default().parse::<Blob>()
        };
        match name {
            "held" => {
                let held = Blob::page(cx, None, 1000).into_iter();
                let held = held.map(|held| (held.blob.to_string(), (held.length, held.holds)));
                encoded(&held.collect::<BTreeMap<_, _>>())
            }
            "came" => {
                let came = CAME.page(None, 1000)?.into_iter();
                let came = came.map(|(id, (blob, outcome))| {
                    let outcome = match outcome {
                        Ok(length) => json!({ "blob": blob, "length": length }),
                        Err(why) => json!({ "blob": blob, "why": why }),
                    };
                    (id.to_string(), outcome)
                });
                encoded(&came.collect::<BTreeMap<_, _>>())
            }
            "read" => {
                let from = arguments.get("from").and_then(Value::as_u64).unwrap_or(0);
                let part = hash()?.read(cx, from, SHOWN_BYTES)?;
                encoded(&String::from_utf8_lossy(&part).into_owned())
            }
            _ => encoded(&hash()?),
        }
    }

    fn may_read(&self, _: &Context, _: &Address, _: &Identity, blob: &Blob) -> Result<bool> {
        Ok(GIVEN.get(blob)?.unwrap_or_default())
    }

    fn blob_fetched(&mut self, _: &mut Context, fetched: BlobFetched) -> Result<()> {
        if CAME.get(&fetched.id)?.is_some() {
            return Err(Error::failed("it was told before"));
        }
        let outcome = fetched.outcome.map_err(|error| error.message);
        CAME.set(&fetched.id, &(fetched.blob, outcome))
    }
}

fn write(cx: &mut Context, request: &Request) -> Result<Value> {
    let draft = Draft::named(request.argument::<String>("draft")?);
    if flag(request, "discard")? {
        draft.discard(cx)?;
        return Ok(json!("discarded"));
    }
    let bytes = bytes(request)?;
    let mut length = json!(null);
    if !bytes.is_empty() {
        length = json!(draft.append(cx, &bytes)?);
    }
    if flag(request, "seal")? {
        return Ok(json!(draft.seal(cx)?));
    }
    Ok(length)
}

fn fetch(cx: &mut Context, request: &Request) -> Result<u64> {
    let blob: Blob = request.argument("hash")?;
    let peer: String = request.argument("peer")?;
    let id = HEXLOWER_PERMISSIVE.decode(peer.as_bytes()).ok();
    let id = id.and_then(|id| id.try_into().ok());
    let id = id.ok_or_else(|| Error::invalid("a node's id has 64 hexadecimal digits"))?;
    let user: Option<String> = request.argument("from")?;
    let from = Address {
        place: Place::Node(id),
        plugin: cx.instance().into(),
        principal: user.map_or(Principal::Node, |user| Principal::User(Arc::from(user))),
    };
    let mut fetch = blob.fetch(from);
    if let Some(bytes) = request.argument("at-most")? {
        fetch = fetch.at_most(bytes);
    }
    if let Some(ms) = request.argument("ms")? {
        fetch = fetch.within(cx, Duration::from_millis(ms));
    }
    fetch.begin(cx)
}

fn bytes(request: &Request) -> Result<Vec<u8>> {
    let text: Option<String> = request.argument("text")?;
    let times: Option<usize> = request.argument("times")?;
    Ok(text.unwrap_or_default().repeat(times.unwrap_or(1)).into())
}

fn flag(request: &Request, name: &str) -> Result<bool> {
    Ok(request.argument::<Option<bool>>(name)?.unwrap_or_default())
}

#[expect(clippy::panic, reason = "what this plugin is for")]
fn broken() {
    panic!("broken on purpose");
}

plugin!(Courier);
