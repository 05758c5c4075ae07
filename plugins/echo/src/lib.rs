//! Answers what it is told, and remembers how often: the smallest plugin that keeps state.

use serde::Serialize;
use std::time::Duration;
use wormholes_plugin::{
    Caller, Cell, Context, Error, InMemory, Plugin, Reply, Request, Result, json, plugin,
};

/// How often it was told something.
const COUNT: Cell<u64> = Cell::new("count");
/// The request that `later` answers.
const WAITING: Cell<(u64, String), InMemory> = Cell::scratch("waiting");

/// The plugin.
#[derive(Debug, Default)]
pub struct Echo;

#[derive(Debug, Serialize)]
struct Said {
    text: String,
    count: u64,
}

impl Plugin for Echo {
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        let text: String = request.argument("text")?;
        match request.name.as_str() {
            "say" => Reply::done(&said(text)?),
            "later" => {
                WAITING.set(&(request.id, text))?;
                cx.progress(request.id, Some(50), "waiting")?;
                cx.set_volatile_timer("later", Duration::from_millis(100), &[])?;
                Ok(Reply::Later)
            }
            _ => Err(Error::not_found("say and later are all that echo knows")),
        }
    }

    fn query(&self, _: &Context, _: &Caller, name: &str, _: &[u8]) -> Result<Vec<u8>> {
        if name != "count" {
            return Err(Error::not_found("count is all that can be asked"));
        }
        json(&COUNT.get()?.unwrap_or_default())
    }

    fn timer(&mut self, cx: &mut Context, _: &str, _: &[u8]) -> Result<()> {
        let Some((request, text)) = WAITING.get()? else {
            return Ok(());
        };
        let answer = json(&said(text)?)?;
        cx.finish(request, Ok(answer))
    }
}

fn said(text: String) -> Result<Said> {
    let count = COUNT.get()?.unwrap_or_default() + 1;
    COUNT.set(&count)?;
    Ok(Said { text, count })
}

plugin!(Echo);
