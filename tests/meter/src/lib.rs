//! A plugin for benches: its events do what a bench counts.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wormholes_plugin::{
    Address, Caller, Cell, Context, Error, Halt, Identity, Incoming, Letter, Map, Outcome, Place,
    Plugin, Principal, Reply, Request, Result, json, plugin,
};

const COUNT: Cell<u64> = Cell::new("count");
const ROWS: Map<u64, u64> = Map::new("row");
/// Channels that were halted.
const HALTS: Cell<u64> = Cell::new("halts");
/// Messages that are not to come.
const GAPS: Cell<u64> = Cell::new("gaps");
/// What came of questions: what went wrong, if it did.
const ANSWERS: Cell<Vec<Option<String>>> = Cell::new("answers");
/// Poison does nothing any more.
const CURED: Cell<bool> = Cell::new("cured");
/// Who told it something last, and as whom it was told.
const LAST: Cell<(Known, Option<String>)> = Cell::new("last");
/// Messages that are on their way, and the requests that wait for them.
const WAITING: Map<u64, u64> = Map::new("waiting");
/// The user who told it something last; none: it was a node.
const LAST_USER: Cell<Option<String>> = Cell::new("last-user");

/// Who told it something.
#[derive(Debug, Serialize, Deserialize)]
enum Known {
    Node([u8; 32]),
    Alias([u8; 32]),
}

/// The plugin.
#[derive(Debug, Default)]
pub struct Meter {
    /// Whom its steps are for.
    aim: Option<Address>,
}

impl Plugin for Meter {
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        match request.name.as_str() {
            "write" => Reply::done(&count()?),
            "send" => {
                let count = count()?;
                Letter::with(peer(cx, &request)?, "step", &1u64)?.send(cx)?;
                Reply::done(&count)
            }
            "aim" => {
                self.aim = Some(peer(cx, &request)?);
                Reply::done(&"aimed")
            }
            // The least that an event does which reads, writes and sends.
            "step" => {
                let aim = self.aim.clone();
                let aim = aim.ok_or_else(|| Error::invalid("`aim` comes before steps"))?;
                let count = count()?;
                Letter::with(aim, "step", &1u64)?.send(cx)?;
                Reply::done(&count)
            }
            "decide" => {
                let times: u64 = request.argument("times")?;
                let operations: Vec<(u64, u64)> = (0..times).map(|n| (n, n * n)).collect();
                apply(&operations)?;
                Letter::with(peer(cx, &request)?, "decide", &operations)?.send(cx)?;
                Reply::done(&times)
            }
            "tell" => tell(cx, &request),
            "back" => {
                let (to, own) = LAST.get()?.ok_or_else(|| Error::not_found("nobody came"))?;
                let to = Address {
                    place: match to {
                        Known::Node(id) => Place::Node(id),
                        Known::Alias(id) => Place::Alias(id),
                    },
                    plugin: cx.instance().into(),
                    principal: Principal::Node,
                };
                let own = own.map_or(Identity::Node, |name| Identity::Alias(name.into()));
                let letter = Letter::new(to, "tell", *b"good evening").sender(own);
                let sent = letter.report().send(cx)?;
                WAITING.set(&sent, &request.id)?;
                Ok(Reply::Later)
            }
            "question" => {
                let patience = Duration::from_millis(request.argument("patience_ms")?);
                // An event that keeps something is owed its answer over a restart, too.
                count()?;
                let question = Letter::new(peer(cx, &request)?, "hold", []);
                question.ask(cx, patience).and_then(|id| Reply::done(&id))
            }
            // Whoever asks waits for ever.
            "hold" => Ok(Reply::Later),
            "cure" => CURED.set(&true).and_then(|()| Reply::done(&"cured")),
            "reopen" => {
                let peer = peer(cx, &request)?;
                cx.reopen(&peer, "tell", &Identity::Node)?;
                Reply::done(&"reopened")
            }
            "alias" => Reply::done(&cx.alias_key(&request.argument::<String>("name")?)),
            name => Err(Error::not_found(format!("there is no command `{name}`"))),
        }
    }

    fn message(&mut self, _: &mut Context, message: Incoming) -> Result<()> {
        let is_poison = message.body == b"poison" && !CURED.get()?.unwrap_or_default();
        assert!(!is_poison, "poisoned on purpose");
        match message.protocol.as_str() {
            "decide" => {
                apply(&message.read::<Vec<(u64, u64)>>()?)?;
                count().map(drop)
            }
            _ => {
                let from = match message.from.place {
                    Place::Node(id) => Known::Node(id),
                    Place::Alias(id) => Known::Alias(id),
                    Place::Here => return count().map(drop),
                };
                let own = match message.own {
                    Identity::Node => None,
                    Identity::Alias(name) => Some(name.to_string()),
                };
                LAST.set(&(from, own))?;
                LAST_USER.set(&user(message.from.principal))?;
                count().map(drop)
            }
        }
    }

    fn report(&mut self, cx: &mut Context, id: u64, outcome: Outcome) -> Result<()> {
        let Some(request) = WAITING.get(&id)? else {
            return Ok(());
        };
        WAITING.remove(&id)?;
        let answer = match outcome {
            Outcome::Delivered => json(&"handled"),
            Outcome::Refused(error) => Err(error),
            Outcome::Expired => Err(Error::failed("it expired")),
        };
        // Who asked may have left.
        let _ = cx.finish(request, answer);
        Ok(())
    }

    fn gap(
        &mut self,
        _: &mut Context,
        _: &Address,
        _: &Identity,
        _: &str,
        messages: u64,
    ) -> Result<()> {
        GAPS.set(&(GAPS.get()?.unwrap_or_default() + messages))
    }

    fn answer(&mut self, _: &mut Context, _: u64, answer: Result<Vec<u8>>) -> Result<()> {
        let mut answers = ANSWERS.get()?.unwrap_or_default();
        answers.push(answer.err().map(|error| error.message));
        ANSWERS.set(&answers)
    }

    fn halted(
        &mut self,
        _: &mut Context,
        _: &Address,
        _: &Identity,
        _: &str,
        _: Halt,
    ) -> Result<()> {
        HALTS.set(&(HALTS.get()?.unwrap_or_default() + 1))
    }

    fn query(&self, _: &Context, _: &Caller, name: &str, _: &[u8]) -> Result<Vec<u8>> {
        match name {
            "last" => json(&LAST.get()?),
            "last-user" => json(&LAST_USER.get()?.flatten()),
            "gaps" => json(&GAPS.get()?.unwrap_or_default()),
            "answers" => json(&ANSWERS.get()?.unwrap_or_default()),
            "halts" => json(&HALTS.get()?.unwrap_or_default()),
            _ => json(&COUNT.get()?.unwrap_or_default()),
        }
    }
}

fn tell(cx: &mut Context, request: &Request) -> Result<Reply> {
    let text = request.argument::<Option<String>>("text")?;
    let text = text.unwrap_or_else(|| "good morning".to_owned());
    let label: Option<String> = request.argument("label")?;
    let mut letter =
        Letter::new(peer(cx, request)?, "tell", text).label(&label.unwrap_or_default());
    if let Some(alias) = request.argument::<Option<String>>("alias")? {
        letter = letter.alias(&alias);
    }
    if let Some(ms) = request.argument("expires_ms")? {
        letter = letter.expires(cx, Duration::from_millis(ms));
    }
    let sent = letter.report().send(cx)?;
    WAITING.set(&sent, &request.id)?;
    Ok(Reply::Later)
}

fn count() -> Result<u64> {
    let count = COUNT.get()?.unwrap_or_default() + 1;
    COUNT.set(&count)?;
    Ok(count)
}

fn apply(operations: &[(u64, u64)]) -> Result<()> {
    operations
        .iter()
        .try_for_each(|(key, value)| ROWS.set(key, value))
}

fn peer(cx: &Context, request: &Request) -> Result<Address> {
    let node: Vec<u8> = request.argument("node")?;
    let node = node.try_into();
    let node = node.map_err(|_| Error::invalid("a node's id has 32 bytes"))?;
    let user: Option<String> = request.argument("user")?;
    Ok(Address {
        principal: user.map_or(Principal::Node, |name| Principal::User(name.into())),
        ..Address::node(cx, node)
    })
}

fn user(principal: Principal) -> Option<String> {
    match principal {
        Principal::Node => None,
        Principal::User(name) => Some(name.to_string()),
    }
}

plugin!(Meter);
