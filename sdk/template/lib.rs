//! Reminds you of what you told it: a command, a query and a timer to begin with.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use wormholes_plugin::{
    Caller, Cell, Context, Error, Level, Map, Plugin, Reply, Request, Result, json, plugin,
};

/// The number of the last reminder.
const LAST: Cell<u64> = Cell::new("last");
const REMINDERS: Map<u64, Reminder> = Map::new("reminders");

/// The plugin. What it keeps is in its rows; this value is a cache at most.
#[derive(Debug, Default)]
pub struct Reminders;

#[derive(Debug, Serialize, Deserialize)]
struct Reminder {
    text: String,
    is_due: bool,
}

impl Plugin for Reminders {
    /// Each request is one transaction: the row, the timer and the answer, or nothing of them.
    fn request(&mut self, cx: &mut Context, request: Request) -> Result<Reply> {
        match request.name.as_str() {
            "add" => {
                let minutes: Option<u64> = request.argument("minutes")?;
                let number = add(cx, request.argument("text")?, until_due(minutes)?)?;
                Reply::done(&number)
            }
            name => Err(Error::not_found(format!("there is no command `{name}`"))),
        }
    }

    /// Reads what is on disk, beside all other events, and writes nothing.
    fn query(&self, _: &Context, _: &Caller, _: &str, _: &[u8]) -> Result<Vec<u8>> {
        let reminders = REMINDERS.page(None, 1000)?;
        let line = |(number, reminder): (u64, Reminder)| {
            let due = if reminder.is_due { " (due)" } else { "" };
            format!("{number}: {}{due}", reminder.text)
        };
        json(&reminders.into_iter().map(line).collect::<Vec<_>>())
    }

    /// Late after a stop of the node, but never forgotten.
    fn timer(&mut self, cx: &mut Context, name: &str, _: &[u8]) -> Result<()> {
        let number = name.parse().unwrap_or_default();
        let Some(mut reminder) = REMINDERS.get(&number)? else {
            return Ok(());
        };
        cx.log(Level::Info, &format!("reminder {number} is due"));
        reminder.is_due = true;
        REMINDERS.set(&number, &reminder)
    }
}

fn add(cx: &mut Context, text: String, until_due: Duration) -> Result<u64> {
    let number = LAST.get()?.unwrap_or_default() + 1;
    LAST.set(&number)?;
    let is_due = false;
    REMINDERS.set(&number, &Reminder { text, is_due })?;
    cx.set_timer(&number.to_string(), until_due, &[])?;
    Ok(number)
}

fn until_due(minutes: Option<u64>) -> Result<Duration> {
    match minutes.unwrap_or(10) {
        0 => Err(Error::invalid("argument `minutes`: at least 1")),
        minutes => Ok(Duration::from_secs(minutes.saturating_mul(60))),
    }
}

plugin!(Reminders);

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wormholes_plugin::Principal;
    use wormholes_plugin_kit::{Drive, World};

    use super::*;

    const MANIFEST: &str = include_str!("../plugin.toml");

    #[test]
    fn a_reminder_is_due_in_its_time_even_when_the_node_was_stopped() {
        let node = Principal::Node;
        let mut world = World::<Reminders>::new(1, MANIFEST);
        let water = json!({ "text": "water the plants", "minutes": 2 });
        assert_eq!(world.at(0).request(&node, "add", water), Ok(json!(1)));
        world.at(0).restart();
        world.pass(Duration::from_secs(119));
        let list = world.at(0).query(&node, "list", json!({}));
        assert_eq!(list, Ok(json!(["1: water the plants"])));
        world.pass(Duration::from_secs(1));
        let list = world.at(0).query(&node, "list", json!({}));
        assert_eq!(list, Ok(json!(["1: water the plants (due)"])));
    }
}
