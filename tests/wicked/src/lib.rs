//! A plugin for tests: it loops, breaks, takes all memory, floods whatever can be flooded, and never
//! answers. Its host must contain each of it.

mod codes;
mod keys;
mod rules;
mod wires;

use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use wormholes_plugin::{
    Address, Caller, Cell, Context, Error, InMemory, Letter, Level, Map, Migration, Plugin, Reason,
    Reply, Request, Result,
    host::{OnDisk, Range, Shelf},
    json, plugin,
};

/// Written before something goes wrong.
const MARK: Cell<u64> = Cell::new("mark");
/// The same, in memory.
const SCRATCH_MARK: Cell<u64, InMemory> = Cell::scratch("mark");
const FLOOD: Map<u64, Vec<u8>> = Map::new("flood");
const SCRATCH_FLOOD: Map<u64, Vec<u8>, InMemory> = Map::scratch("flood");

/// Rows of which a migration takes many steps, and the last one that it turned.
const SHEETS: Map<u64, u64> = Map::new("sheet");
const TURNED: Cell<Option<u64>> = Cell::new("turned");
/// Sheets that one step turns.
const STEP: u32 = 50;

/// Lives as long as an instance's memory.
static MEMORY: AtomicU64 = AtomicU64::new(0);

/// The plugin.
#[derive(Debug, Default)]
pub struct Wicked;

impl Plugin for Wicked {
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        let run = MEMORY.fetch_add(1, Ordering::Relaxed);
        match request.name.as_str() {
            "marks" => Reply::done(&(MARK.get()?, SCRATCH_MARK.get()?, run)),
            "mark" => mark(request.argument("with")?).and_then(|()| Reply::done(&"marked")),
            "refuse" => mark(request.argument("with")?).and(Err(Error::denied("it says no"))),
            "break" => {
                mark(request.argument("with")?)?;
                broken(cx.attempt())
            }
            "loop" => endless(),
            "memory" => all_memory(),
            "write" => Reply::done(&flood(|n| FLOOD.set(&n, &vec![0; 10_000]))),
            "scratch" => Reply::done(&flood(|n| SCRATCH_FLOOD.set(&n, &vec![0; 10_000]))),
            "drizzle" => Reply::done(&flood(|n| FLOOD.set(&n, &vec![0; 500]))),
            "scratch-drizzle" => Reply::done(&flood(|n| SCRATCH_FLOOD.set(&n, &vec![0; 500]))),
            "timers" => {
                let hour = Duration::from_secs(3600);
                Reply::done(&flood(|n| cx.set_timer(&n.to_string(), hour, &[])))
            }
            "facts" | "foreign-fact" | "foreign-hook" | "deep-question" | "wild-question" => {
                rules::command(cx, &request)
            }
            "messages" => Reply::done(&flood(|_| letter(cx).send(cx).map(drop))),
            "posts" => Reply::done(&flood(|_| letter(cx).post(cx))),
            "questions" => {
                let hour = Duration::from_secs(3600);
                Reply::done(&flood(|_| letter(cx).ask(cx, hour).map(drop)))
            }
            // Another principal's request is not there to answer.
            "forge" => cx
                .finish(request.argument("with")?, json(&"forged"))
                .and_then(|()| Reply::done(&"it answered")),
            "log" => {
                (0..5_000).for_each(|n| cx.log(Level::Info, &format!("line {n}")));
                Reply::done(&"logged")
            }
            "fill" => {
                let first = request.argument::<u64>("with")? * 100_000;
                Reply::done(&flood(|n| FLOOD.set(&(first + n), &vec![0; 50_000])))
            }
            "alarm" => {
                let soon = request.argument("after-ms").unwrap_or(300);
                let soon = Duration::from_millis(soon);
                cx.set_timer(
                    "alarm",
                    soon,
                    &request.argument::<u64>("with")?.to_be_bytes(),
                )?;
                Reply::done(&"set")
            }
            "sheets" => {
                let mut sheets = 0..request.argument("with")?;
                sheets.try_for_each(|n| SHEETS.set(&n, &0))?;
                Reply::done(&"kept")
            }
            "seen" => seen().and_then(|seen| Reply::done(&seen)),
            "later" | "patiently" | "for-ever" => Ok(Reply::Later),
            _ => more(cx, &request),
        }
    }

    fn init(&mut self, _: &mut Context, reason: Reason) -> Result<()> {
        match (reason, MARK.get()?) {
            (Reason::Updated, Some(15)) => Err(Error::failed("15 is not updated")),
            (Reason::Updated, Some(1018)) => keys::after_steps(),
            _ => Ok(()),
        }
    }

    fn migrate(&mut self, cx: &mut Context, _: u32) -> Result<Migration> {
        let last = TURNED.get()?.flatten();
        let page = SHEETS.page(last.as_ref(), STEP)?;
        for (n, on) in &page {
            SHEETS.set(n, &(on + 1))?;
        }
        if let Some((n, _)) = page.last() {
            TURNED.set(&Some(*n))?;
            return Ok(Migration::Again);
        }
        TURNED.set(&None)?;
        match MARK.get()? {
            Some(13) => return Err(Error::failed("13 cannot be migrated")),
            Some(14) => broken(cx.attempt()),
            Some(with @ 16..=18) => {
                keys::in_a_step(cx, with)?;
                MARK.set(&(with + 1000))?;
            }
            mark => MARK.set(&(mark.unwrap_or_default() + 1000))?,
        }
        Ok(Migration::Done)
    }

    fn timer(&mut self, _: &mut Context, _: &str, payload: &[u8]) -> Result<()> {
        let with = payload.try_into().map(u64::from_be_bytes);
        mark(with.unwrap_or_default())
    }

    /// It tries to write, and is refused.
    fn query(&self, cx: &Context, _: &Caller, name: &str, _: &[u8]) -> Result<Vec<u8>> {
        if name == "hidden" {
            return keys::hidden();
        }
        cx.log(Level::Info, "asked");
        mark(7)?;
        json(&"it wrote")
    }

    fn answer(&mut self, cx: &mut Context, question: u64, answer: Result<Vec<u8>>) -> Result<()> {
        codes::answered(cx, question, answer)
    }

    fn canceled(&mut self, _: &mut Context, request: u64) -> Result<()> {
        MARK.set(&request)
    }
}

fn more(cx: &mut Context, request: &Request) -> Result<Reply> {
    match request.name.as_str() {
        // All rows that there are, whosever they are.
        "spy" => {
            let all = |backwards| {
                let range = Range {
                    backwards,
                    limit: 100,
                    ..Range::default()
                };
                OnDisk::scan(&range).len()
            };
            Reply::done(&(all(false), all(true)))
        }
        "alias" => Reply::done(&cx.alias_key(&request.argument::<String>("name")?)),
        "finish" => {
            let long = vec![b'1'; request.argument("bytes")?];
            cx.finish(request.argument("with")?, Ok(long))?;
            Reply::done(&"finished")
        }
        "sockets" | "room" | "fetches" | "credit" | "foreign-port" | "foreign-socket"
        | "foreign-answer" | "split" | "tunnel" | "file" => wires::command(cx, request),
        "fail" | "fail-there" | codes::PROTOCOL => codes::command(cx, request),
        _ => keys::command(cx, request),
    }
}

/// To itself.
fn letter(cx: &Context) -> Letter {
    Letter::new(Address::node(cx, cx.node_id()), codes::PROTOCOL, [0; 1000])
}

/// What is on sheets, and on how many.
fn seen() -> Result<Vec<(u64, u64)>> {
    let mut seen = BTreeMap::new();
    let mut last = None;
    loop {
        let page = SHEETS.page(last.as_ref(), 1000)?;
        let Some((n, _)) = page.last() else {
            return Ok(seen.into_iter().collect());
        };
        last = Some(*n);
        for (_, on) in &page {
            *seen.entry(*on).or_default() += 1;
        }
    }
}

fn mark(with: u64) -> Result<()> {
    MARK.set(&with)?;
    SCRATCH_MARK.set(&with)
}

#[expect(clippy::panic, reason = "what it is for")]
fn broken(attempt: u32) -> ! {
    panic!("broken on purpose, attempt {attempt}")
}

fn endless() -> ! {
    let mut turns = 0_u64;
    loop {
        turns = black_box(turns.wrapping_add(1));
    }
}

fn all_memory() -> ! {
    let mut all = Vec::new();
    loop {
        all.push(black_box(vec![1_u8; 1 << 20]));
    }
}

/// How often it went well, and what ended it.
fn flood(mut once: impl FnMut(u64) -> Result<()>) -> (u64, String) {
    for n in 0..100_000 {
        if let Err(error) = once(n) {
            return (n, error.message);
        }
    }
    (100_000, String::new())
}

plugin!(Wicked);
