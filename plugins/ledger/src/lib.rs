//! Ledger: numbered amounts that move between nodes, each exactly once and in order. Both ends count
//! them, so that whoever reads both books sees whether one was lost, doubled or came late.

mod book;

use std::{collections::BTreeMap, time::Duration};

use data_encoding::HEXLOWER_PERMISSIVE;
use wormholes_plugin::{
    Address, Caller, Cell, Context, Error, Halt, Identity, Incoming, Letter, Map, Outcome, Place,
    Plugin, Reply, Request, Result, json, plugin,
};

use self::book::{Book, Peer};

const TRANSFER: &str = "transfer";
const TOTAL: &str = "total";
/// How long another node may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// By node id.
const PEERS: Map<Vec<u8>, Peer> = Map::new("peer");
/// Questions that wait for their answers, and the requests that wait for them.
const QUESTIONS: Map<u64, u64> = Map::new("question");
const BALANCE: Cell<i64> = Cell::new("balance");
/// Transfers that their receivers have handled, and those that they have not.
const CONFIRMED: Cell<u64> = Cell::new("confirmed");
const REFUSED: Cell<u64> = Cell::new("refused");

/// The plugin.
#[derive(Debug, Default)]
pub struct Ledger;

impl Plugin for Ledger {
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        if let Caller::Plugin { from, .. } = &request.caller {
            let peer = PEERS.get(&id(from)?)?.unwrap_or_default();
            return Reply::done(&peer.received_count());
        }
        let node = node(&request.argument::<String>("node")?)?;
        let to = Address::node(cx, node);
        match request.name.as_str() {
            "pay" => {
                let times = request.argument::<Option<u64>>("times")?.unwrap_or(1);
                let amount = request.argument("amount")?;
                pay(cx, &to, &node, amount, times).and_then(|count| Reply::done(&count))
            }
            "ask" => {
                let question = Letter::new(to, TOTAL, []).ask(cx, PATIENCE)?;
                QUESTIONS.set(&question, &request.id)?;
                Ok(Reply::Later)
            }
            "resume" => {
                let mut peer = PEERS.get(&node.to_vec())?.unwrap_or_default();
                peer.resume();
                PEERS.set(&node.to_vec(), &peer)?;
                cx.reopen(&to, TRANSFER, &Identity::Node)?;
                Reply::done(&"resumed")
            }
            name => Err(Error::not_found(format!("there is no command `{name}`"))),
        }
    }

    fn query(&self, _: &Context, _: &Caller, _: &str, _: &[u8]) -> Result<Vec<u8>> {
        let mut peers = BTreeMap::new();
        let mut last = None;
        loop {
            let page = PEERS.page(last.as_ref(), 1000)?;
            let Some((id, _)) = page.last() else {
                break;
            };
            last = Some(id.clone());
            let named = page
                .into_iter()
                .map(|(id, peer)| (HEXLOWER_PERMISSIVE.encode(&id), peer));
            peers.extend(named);
        }
        json(&Book {
            balance: BALANCE.get()?.unwrap_or_default(),
            confirmed: CONFIRMED.get()?.unwrap_or_default(),
            refused: REFUSED.get()?.unwrap_or_default(),
            peers,
        })
    }

    fn message(&mut self, _: &mut Context, message: Incoming) -> Result<()> {
        let from = id(&message.from)?;
        let mut peer = PEERS.get(&from)?.unwrap_or_default();
        let balance = BALANCE.get()?.unwrap_or_default();
        BALANCE.set(&peer.receive(&message.read()?, balance)?)?;
        PEERS.set(&from, &peer)
    }

    fn report(&mut self, _: &mut Context, _: u64, outcome: Outcome) -> Result<()> {
        let count = match outcome {
            Outcome::Delivered => &CONFIRMED,
            Outcome::Refused(_) | Outcome::Expired => &REFUSED,
        };
        count.set(&(count.get()?.unwrap_or_default() + 1))
    }

    fn answer(&mut self, cx: &mut Context, question: u64, answer: Result<Vec<u8>>) -> Result<()> {
        let Some(request) = QUESTIONS.get(&question)? else {
            return Ok(());
        };
        QUESTIONS.remove(&question)?;
        // Who asked may have left.
        let _ = cx.finish(request, answer);
        Ok(())
    }

    fn halted(
        &mut self,
        _: &mut Context,
        peer: &Address,
        _: &Identity,
        _: &str,
        reason: Halt,
    ) -> Result<()> {
        let key = id(peer)?;
        let mut peer = PEERS.get(&key)?.unwrap_or_default();
        peer.halt(reason);
        PEERS.set(&key, &peer)
    }
}

fn pay(cx: &mut Context, to: &Address, node: &[u8; 32], amount: u64, times: u64) -> Result<u64> {
    let mut peer = PEERS.get(&node.to_vec())?.unwrap_or_default();
    let balance = BALANCE.get()?.unwrap_or_default();
    let (transfers, balance) = peer.pay(amount, times, balance)?;
    for transfer in &transfers {
        let letter = Letter::with(to.clone(), TRANSFER, transfer)?;
        letter.report().send(cx)?;
    }
    BALANCE.set(&balance)?;
    PEERS.set(&node.to_vec(), &peer)?;
    Ok(peer.paid_count())
}

fn node(text: &str) -> Result<[u8; 32]> {
    let id = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    let id = id.and_then(|id| id.try_into().ok());
    id.ok_or_else(|| Error::invalid("a node's id has 64 hexadecimal digits"))
}

fn id(address: &Address) -> Result<Vec<u8>> {
    match &address.place {
        Place::Node(id) => Ok(id.to_vec()),
        Place::Here | Place::Alias(_) => Err(Error::denied("only nodes have accounts here")),
    }
}

plugin!(Ledger);
