//! Messages in a world, by a plugin that says and writes down whatever it is told to.

mod networks;

use std::time::Duration;

use serde_json::{Value, json};
use wormholes_plugin::{
    Address, Caller, Cell, Context, Error, ErrorCode, Halt, Identity, Incoming, Letter, Outcome,
    Place, Plugin, Principal, Reason, Reply, Request, Result, json,
};

use crate::{Drive, Random, World, check, every_fault};

const MANIFEST: &str = "
    [plugin]
    name = 'talker'
    [capabilities]
    users = true
    [messages]
    protocols = ['talk']
    [limits]
    messages = 3
    channels = 2
    outbox_mib = 1
    requests = 2
";
const HALTING: &str = "[instance]\nmode = 'fresh'\npoison = 'halt'\n";
const TALK: &str = "talk";
const NODE: Principal = Principal::Node;

const HEARD: Cell<Vec<String>> = Cell::new("heard");
/// Bears what it fails on otherwise.
const IS_WELL: Cell<bool> = Cell::new("well");

#[derive(Default)]
struct Talker;

fn hear(what: String) -> Result<()> {
    let mut heard = HEARD.get()?.unwrap_or_default();
    heard.push(what);
    HEARD.set(&heard)
}

fn from(address: &Address) -> &'static str {
    match address.place {
        Place::Here => "here",
        Place::Node(_) => "node",
        Place::Alias(_) => "alias",
    }
}

fn body(body: &[u8]) -> String {
    String::from_utf8_lossy(body).into_owned()
}

fn letter(cx: &Context, request: &Request) -> Result<Letter> {
    let node: Option<Vec<u8>> = request.argument("node")?;
    let alias: Option<Vec<u8>> = request.argument("to-alias")?;
    let key = |bytes: Vec<u8>| <[u8; 32]>::try_from(bytes).map_err(|_| Error::invalid("32 bytes"));
    let place = match (node, alias) {
        (Some(id), _) => Place::Node(key(id)?),
        (None, Some(id)) => Place::Alias(key(id)?),
        (None, None) => Place::Here,
    };
    let user: Option<String> = request.argument("user")?;
    let to = Address {
        place,
        plugin: cx.instance().into(),
        principal: user.map_or(NODE, |name| Principal::User(name.into())),
    };
    let protocol: Option<String> = request.argument("protocol")?;
    let text: Option<String> = request.argument("body")?;
    let label: Option<String> = request.argument("label")?;
    let protocol = protocol.unwrap_or_else(|| TALK.to_owned());
    let mut letter = Letter::new(to, &protocol, text.unwrap_or_default().into_bytes());
    letter = letter.label(&label.unwrap_or_default()).report();
    letter.expires_ms = request.argument("expires")?;
    if let Some(name) = request.argument::<Option<String>>("alias")? {
        letter = letter.alias(&name);
    }
    Ok(letter)
}

impl Plugin for Talker {
    fn init(&mut self, _: &mut Context, reason: Reason) -> Result<()> {
        match reason {
            Reason::Started => hear("started".to_owned()),
            Reason::Created | Reason::Updated => Ok(()),
        }
    }

    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        if let Caller::Plugin { from: asker, .. } = &request.caller {
            let text = body(&request.body);
            hear(format!("asked {text} by {}", from(asker)))?;
            return match text.as_str() {
                "later" => Ok(Reply::Later),
                _ => Ok(Reply::Done(request.body)),
            };
        }
        if request.name == "well" {
            IS_WELL.set(&true)?;
            return Reply::done(&());
        }
        let letter = letter(cx, &request)?;
        let times = request.argument::<Option<u64>>("times")?.unwrap_or(1);
        let (to, sender) = (letter.to.clone(), letter.way.sender.clone());
        match request.name.as_str() {
            "send" => {
                for _ in 0..times {
                    letter.clone().send(cx)?;
                }
            }
            "post" => letter.post(cx)?,
            "ask" => {
                let patience = request.argument::<Option<u64>>("patience")?;
                let patience = Duration::from_secs(patience.unwrap_or(5));
                letter.ask(cx, patience)?;
            }
            "waiting" => return Reply::done(&cx.waiting(&to, TALK, &sender)),
            "reopen" => cx.reopen(&to, TALK, &Identity::Node)?,
            name => return Err(Error::not_found(name)),
        }
        Reply::done(&())
    }

    fn canceled(&mut self, _: &mut Context, _: u64) -> Result<()> {
        hear("canceled".to_owned())
    }

    fn query(&self, cx: &Context, _: &Caller, name: &str, _: &[u8]) -> Result<Vec<u8>> {
        match name {
            "alias-key" => json(&cx.alias_key("me")),
            _ => json(&HEARD.get()?.unwrap_or_default()),
        }
    }

    fn message(&mut self, _: &mut Context, message: Incoming) -> Result<()> {
        let text = body(&message.body);
        let durable = if message.durable { "" } else { "post " };
        if text == "poison" && !IS_WELL.get()?.unwrap_or_default() {
            panic!("poisoned");
        }
        if text == "no" {
            return Err(Error::denied("no"));
        }
        hear(format!("{durable}{text} from {}", from(&message.from)))
    }

    fn gap(
        &mut self,
        _: &mut Context,
        _: &Address,
        _: &Identity,
        _: &str,
        messages: u64,
    ) -> Result<()> {
        hear(format!("gap of {messages}"))
    }

    fn report(&mut self, _: &mut Context, _: u64, outcome: Outcome) -> Result<()> {
        hear(match outcome {
            Outcome::Delivered => "delivered".to_owned(),
            Outcome::Refused(error) => format!("refused: {error}"),
            Outcome::Expired => "expired".to_owned(),
        })
    }

    fn answer(&mut self, _: &mut Context, _: u64, answer: Result<Vec<u8>>) -> Result<()> {
        hear(match answer {
            Ok(text) => format!("answer {}", body(&text)),
            Err(error) => format!("{:?}: {error}", error.code),
        })
    }

    fn halted(
        &mut self,
        _: &mut Context,
        _: &Address,
        _: &Identity,
        _: &str,
        reason: Halt,
    ) -> Result<()> {
        hear(format!("halted {reason:?}"))
    }
}

struct Two {
    world: World<Talker>,
    ids: [[u8; 32]; 2],
}

impl Two {
    fn new(seed: u64, more: &str) -> Self {
        let mut world = World::new(seed, &format!("{MANIFEST}{more}"));
        world.add_node();
        let ids = [world.at(0).id(), world.at(1).id()];
        Self { world, ids }
    }

    /// Tells the node at `at` to do something with the other one.
    fn tell(&mut self, at: usize, command: &str, mut arguments: Value) -> Result<Value> {
        if arguments.get("here").is_none() && arguments.get("to-alias").is_none() {
            arguments["node"] = json!(self.ids[1 - at]);
        }
        self.world.at(at).request(&NODE, command, arguments)
    }

    fn say(&mut self, at: usize, body: &str) {
        self.tell(at, "send", json!({ "body": body })).unwrap();
    }

    fn heard(&mut self, at: usize) -> Vec<String> {
        let heard = self.world.at(at).query(&NODE, "heard", json!({})).unwrap();
        serde_json::from_value(heard).unwrap()
    }

    fn pass(&mut self, seconds: u64) {
        self.world.pass(Duration::from_secs(seconds));
    }
}

#[test]
fn messages_come_in_order_and_reports_tell() {
    let mut two = Two::new(1, "");
    for body in ["one", "no", "three"] {
        two.say(0, body);
    }
    assert_eq!(two.tell(0, "waiting", json!({})), Ok(json!(3)));
    two.pass(5);
    assert_eq!(two.heard(1), ["one from node", "three from node"]);
    assert_eq!(two.heard(0), ["delivered", "refused: no", "delivered"]);
    assert_eq!(two.tell(0, "waiting", json!({})), Ok(json!(0)));
}

#[test]
fn what_expired_is_a_gap_that_both_ends_hear_of() {
    let mut two = Two::new(1, "");
    two.world.cut(0, 1);
    let soon = two.world.now_ms() + 1000;
    let letter = json!({ "body": "late", "expires": soon, "times": 2 });
    two.tell(0, "send", letter).unwrap();
    two.say(0, "in time");
    two.pass(5);
    assert_eq!(two.heard(0), ["expired", "expired"]);
    assert_eq!(two.heard(1), [] as [&str; 0]);
    two.world.heal(0, 1);
    two.pass(5);
    assert_eq!(two.heard(1), ["gap of 2", "in time from node"]);
    assert_eq!(two.heard(0), ["expired", "expired", "delivered"]);
}

#[test]
fn each_question_has_one_answer() {
    let mut two = Two::new(1, "");
    two.tell(0, "ask", json!({ "body": "hello" })).unwrap();
    two.pass(1);
    two.tell(0, "ask", json!({ "body": "later" })).unwrap();
    two.pass(9);
    let late = "Expired: the plugin did not answer in time";
    assert_eq!(two.heard(0), ["answer hello", late]);
    assert_eq!(two.heard(1)[2..], ["canceled"]);
    two.tell(0, "ask", json!({ "user": "nobody" })).unwrap();
    two.pass(1);
    assert_eq!(two.heard(0)[2], "NotFound: there is no such user");
    two.tell(0, "ask", json!({ "body": "later" })).unwrap();
    two.pass(1);
    two.world.cut(0, 1);
    two.pass(1);
    let broke = "Unavailable: the trunk to the other node broke";
    assert_eq!(two.heard(0)[3], broke);
    assert_eq!(two.heard(1)[4..], ["canceled"]);
    two.tell(0, "ask", json!({})).unwrap();
    two.pass(9);
    let away = "Unavailable: the node cannot be reached";
    assert_eq!(two.heard(0)[4..], [away]);
}

#[test]
fn poison_halts_the_channel_until_both_ends_reopen_it() {
    let mut two = Two::new(1, HALTING);
    for body in ["one", "poison", "three"] {
        two.say(0, body);
    }
    two.pass(5);
    assert_eq!(two.heard(1), ["one from node", "halted Poison"]);
    assert_eq!(two.heard(0), ["delivered", "halted Poison"]);
    let refused = two.tell(0, "send", json!({})).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    assert!(refused.message.contains("halted"), "{refused}");
    two.tell(1, "well", json!({})).unwrap();
    two.tell(0, "reopen", json!({})).unwrap();
    two.pass(5);
    assert_eq!(two.heard(1).len(), 2, "only one end reopened it");
    two.tell(1, "reopen", json!({})).unwrap();
    two.pass(5);
    assert_eq!(two.heard(1)[2..], ["poison from node", "three from node"]);
    assert_eq!(two.heard(0)[2..], ["delivered", "delivered"]);
}

#[test]
fn poison_that_is_skipped_is_refused() {
    let mut two = Two::new(1, "");
    two.say(0, "poison");
    two.say(0, "two");
    two.pass(5);
    assert_eq!(two.heard(1), ["two from node"]);
    let refused = "refused: the plugin failed; see its log";
    assert_eq!(two.heard(0), [refused, "delivered"]);
}

#[test]
fn an_alias_is_answered_while_it_is_connected() {
    let mut two = Two::new(1, "");
    let key = two.world.at(0).query(&NODE, "alias-key", json!({}));
    let back = json!({ "to-alias": key.unwrap(), "body": "back" });
    two.tell(1, "send", back.clone()).unwrap();
    two.pass(5);
    assert_eq!(two.heard(0), [] as [&str; 0], "nobody knows that key yet");
    let hello = json!({ "body": "hello", "alias": "me" });
    two.tell(0, "send", hello).unwrap();
    two.pass(5);
    let heard = two.heard(1);
    assert!(heard.contains(&"hello from alias".to_owned()), "{heard:?}");
    assert!(two.heard(0).contains(&"back from node".to_owned()));
    two.world.cut(0, 1);
    two.tell(1, "ask", back).unwrap();
    two.pass(1);
    let gone = "Unavailable: nobody with that key is connected";
    assert_eq!(two.heard(1).last().unwrap(), gone);
}

#[test]
fn an_alias_of_a_user_is_that_users_alone() {
    let mut two = Two::new(1, "");
    let ann = Principal::User("ann".into());
    two.world.at(0).add_user("ann");
    let key = two.world.at(0).query(&ann, "alias-key", json!({})).unwrap();
    let of_node = two.world.at(0).query(&NODE, "alias-key", json!({}));
    assert_ne!(of_node, Ok(key.clone()));
    let hello = json!({ "node": two.ids[1], "body": "hello", "alias": "me" });
    two.world.at(0).request(&ann, "send", hello).unwrap();
    two.pass(5);
    assert_eq!(two.heard(1), ["hello from alias"]);
    let back = json!({ "to-alias": key, "body": "back" });
    two.tell(1, "send", back).unwrap();
    two.pass(5);
    let heard = two.world.at(0).query(&ann, "heard", json!({}));
    assert_eq!(heard, Ok(json!(["delivered", "back from node"])));
    assert_eq!(two.heard(0), [] as [&str; 0]);
}

#[test]
fn principals_of_one_node_write_to_each_other_and_strangers_make_no_users() {
    let mut two = Two::new(1, "");
    let ann = Principal::User("ann".into());
    let letter = json!({ "here": true, "user": "ann", "body": "hello" });
    two.tell(0, "send", letter).unwrap();
    two.pass(5);
    assert_eq!(two.heard(0), [] as [&str; 0]);
    two.world.at(0).add_user("ann");
    two.pass(90);
    let heard = two.world.at(0).query(&ann, "heard", json!({}));
    assert_eq!(heard, Ok(json!(["hello from here"])));
    assert_eq!(two.heard(0), ["delivered"]);
}

#[test]
fn limits_of_messages_are_errors_that_name_the_mend() {
    let mut two = Two::new(1, "");
    two.world.cut(0, 1);
    let mut refused = |command: &str, arguments: Value| {
        let told = two.tell(0, command, arguments);
        told.unwrap_err().message
    };
    assert!(refused("send", json!({ "times": 4 })).contains("limits.messages"));
    assert!(refused("send", json!({ "protocol": "x" })).contains("messages.protocols"));
    assert!(refused("send", json!({ "label": "\n" })).contains("no control characters"));
    let long = "x".repeat((1 << 20) + 1);
    assert!(refused("post", json!({ "body": long })).contains("at most 1 MiB"));
    let (here, alias) = (json!({ "here": true }), json!({ "here": 1, "alias": "me" }));
    assert!(refused("send", alias).contains("writes to nodes"));
    two.say(0, &"x".repeat(700 << 10));
    two.tell(0, "send", here).unwrap();
    let mut refused = |command: &str, arguments: Value| {
        let told = two.tell(0, command, arguments);
        told.unwrap_err().message
    };
    let half = "x".repeat(400 << 10);
    assert!(refused("send", json!({ "body": half })).contains("limits.outbox_mib"));
    assert!(refused("send", json!({ "label": "other" })).contains("another way"));
    assert!(refused("send", json!({ "user": "ann" })).contains("limits.channels"));
}

/// A post comes at most once, whatever breaks.
#[test]
fn posts_come_at_most_once() {
    let draw = |random: &mut Random| (0..20).map(|_| random.of(0..300)).collect();
    let mut came = std::cell::Cell::new(0);
    check(20, draw, |seed, steps: &[u64]| {
        let mut two = Two::new(seed, "");
        two.world.unsteady(30);
        for (number, pause) in steps.iter().enumerate() {
            let body = number.to_string();
            two.tell(0, "post", json!({ "body": body })).unwrap();
            two.world.pass(Duration::from_millis(*pause));
        }
        two.pass(5);
        let mut heard = two.heard(1);
        let count = heard.len();
        heard.sort();
        heard.dedup();
        assert_eq!(heard.len(), count, "{heard:?}");
        came.set(came.get() + count);
    });
    let came = *came.get_mut();
    assert!((200..400).contains(&came), "{came} of 400");
}

#[test]
fn every_question_is_answered_once_whatever_breaks() {
    every_fault::<Talker>(MANIFEST, |world| {
        world.add_node();
        let id = world.at(1).id();
        let told = world.at(0).request(&NODE, "ask", json!({ "node": id }));
        world.pass(Duration::from_secs(9));
        let heard = world.at(0).query(&NODE, "heard", json!({})).unwrap();
        let mut heard: Vec<String> = serde_json::from_value(heard).unwrap();
        // A question that nothing durable rests on goes with its node.
        let ended = heard.iter().any(|what| what == "started");
        heard.retain(|what| what != "started");
        assert!(heard.len() == 1 || ended && heard.is_empty(), "{heard:?}");
        let code = told.err().map(|error| error.code);
        assert!(matches!(code, None | Some(ErrorCode::Unavailable)));
    });
}
