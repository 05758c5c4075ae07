//! Answers what it is told, and remembers how often: the smallest plugin that keeps state.

use serde::Serialize;
use std::time::Duration;
use wormholes_plugin::{
    Caller, Cell, Context, Error, InMemory, Map, Plugin, Reply, Request, Result, json, plugin,
};

/// How often it was told something.
const COUNT: Cell<u64> = Cell::new("count");
/// The request that `later` answers.
const WAITING: Cell<(u64, String), InMemory> = Cell::scratch("waiting");
/// The operations of `slowly`, and how many letters each has said. On disk, as they are.
const SLOW: Map<u64, (String, usize)> = Map::new("slow");
/// From letter to letter.
const LETTER: Duration = Duration::from_millis(100);

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
            "slowly" if text.is_empty() => Reply::done(&said(text)?),
            "slowly" => {
                SLOW.set(&request.id, &(text, 0))?;
                cx.set_timer(&request.id.to_string(), LETTER, &[])?;
                Ok(Reply::Later)
            }
            _ => Err(Error::not_found(
                "say, later and slowly are all that echo knows",
            )),
        }
    }

    fn query(&self, _: &Context, _: &Caller, name: &str, _: &[u8]) -> Result<Vec<u8>> {
        if name != "count" {
            return Err(Error::not_found("count is all that can be asked"));
        }
        json(&COUNT.get()?.unwrap_or_default())
    }

    fn canceled(&mut self, cx: &mut Context, request: u64) -> Result<()> {
        cx.cancel_timer(&request.to_string())?;
        SLOW.remove(&request)
    }

    fn timer(&mut self, cx: &mut Context, name: &str, _: &[u8]) -> Result<()> {
        if let Ok(request) = name.parse() {
            return next_letter(cx, request);
        }
        let Some((request, text)) = WAITING.get()? else {
            return Ok(());
        };
        let answer = json(&said(text)?)?;
        cx.finish(request, Ok(answer))
    }
}

fn next_letter(cx: &mut Context, request: u64) -> Result<()> {
    let Some((text, letters)) = SLOW.get(&request)? else {
        return Ok(());
    };
    let all = text.chars().count();
    if letters + 1 >= all {
        SLOW.remove(&request)?;
        let answer = json(&said(text)?)?;
        return cx.finish(request, Ok(answer));
    }
    let percent = u8::try_from(100 * (letters + 1) / all).unwrap_or(100);
    let so_far: String = text.chars().take(letters + 1).collect();
    cx.progress(request, Some(percent), &so_far)?;
    SLOW.set(&request, &(text, letters + 1))?;
    cx.set_timer(&request.to_string(), LETTER, &[])
}

fn said(text: String) -> Result<Said> {
    let count = COUNT.get()?.unwrap_or_default() + 1;
    COUNT.set(&count)?;
    Ok(Said { text, count })
}

plugin!(Echo);
