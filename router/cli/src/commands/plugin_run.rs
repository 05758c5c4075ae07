//! `wormholes plugin run`: a plugin from its folder in a node of its own, which is thrown away. The node is
//! the daemon itself, without network; what it ends with is the end of its standard input, so that none
//! stays behind however this one ends.

mod lines;
mod node;

use std::{ffi::OsString, path::Path, time::Duration};

use serde_json::json;
use wormholes_proto::control::{
    Call, NoParams, PluginAdvanceParams, PluginInfo, PluginLog, PluginLogParams,
    PluginRecordAction, PluginRecordParams, UserList, UserParams, UserStanding,
};

use self::{lines::Lines, node::Node};
use super::{
    Context, field, plugin_change::checked_name, plugin_inspect::inspect, plugin_record, plugins,
};
use crate::{args::RunArgs, client::Client, error::CliError};

/// What this takes besides the plugin's own commands, which go first.
const BUILT_IN: [(&str, &str); 3] = [
    ("help", "This list; `help COMMAND` says more"),
    (
        "advance",
        "Move the time, and run what is due: 300ms, 5s, 2m, 1h, 1d",
    ),
    ("quit", "End"),
];

/// A plugin that somebody tries.
struct Session<'a, 'b> {
    context: &'a mut Context<'b>,
    client: Client,
    plugin: PluginInfo,
    /// The last line of its log that was shown.
    said: u64,
    has_failed: bool,
}

pub(super) fn run(context: &mut Context<'_>, args: &RunArgs) -> Result<(), CliError> {
    let inspection = inspect(&args.folder)?;
    if let Some(problem) = inspection.problems.first() {
        return Err(CliError::Failed(problem.clone()));
    }
    if let Some(file) = args.record.as_deref().filter(|file| file.exists()) {
        return Err(exists(file));
    }
    let name = checked_name(args.name.clone(), &inspection)?;
    let mut node = Node::start(&name, &inspection, args)?;
    let (mut client, plugin) = node.wait(&name)?;
    // What operations ask the daemon goes there, too.
    context.socket = Some(node.socket().to_owned());
    if args.record.is_some() {
        record(&mut client, &name, PluginRecordAction::On)?;
    }
    let mut session = Session {
        context,
        client,
        plugin,
        said: 0,
        has_failed: false,
    };
    session.talk()?;
    let (mut client, has_failed) = (session.client, session.has_failed);
    if let Some(file) = &args.record {
        plugin_record::save(&mut client, &name, file)?;
        record(&mut client, &name, PluginRecordAction::Forget)?;
    }
    drop(client);
    node.stop()?;
    match has_failed {
        true => Err(CliError::Told),
        false => Ok(()),
    }
}

impl Session<'_, '_> {
    /// Takes lines until they end.
    fn talk(&mut self) -> Result<(), CliError> {
        let own = self.plugin.commands.iter().map(|own| own.name.clone());
        let built_in = BUILT_IN.iter().map(|(name, _)| (*name).to_owned());
        let mut lines = Lines::open(&self.plugin.name, own.chain(built_in).collect())?;
        self.show_log()?;
        self.context.output.flush()?;
        while let Some(line) = lines.next()? {
            let json = self.context.output.json;
            let taken = self.take(&line);
            (self.context.output.json, self.context.user) = (json, None);
            match taken {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                // Nobody reads any more.
                Err(error @ CliError::Print(_)) => return Err(error),
                Err(error) => {
                    self.has_failed = true;
                    self.context.output.error(&error);
                }
            }
            self.show_log()?;
            self.context.output.flush()?;
        }
        Ok(())
    }

    /// Does what a line says; true: it says that this is all.
    fn take(&mut self, line: &str) -> Result<bool, CliError> {
        if line.trim_start().starts_with('#') {
            return Ok(false);
        }
        let mut words = shlex::split(line).ok_or_else(|| usage("a quote is not closed"))?;
        if words.first().is_some_and(|word| word == "--user") {
            let name = words.get(1).ok_or_else(|| usage("--user wants a name"))?;
            self.act_for(name.clone())?;
            words.drain(..2);
        }
        let Some(first) = words.first() else {
            return Ok(false);
        };
        let is_own = self.plugin.commands.iter().any(|own| own.name == *first);
        let rest: Vec<&str> = words.iter().skip(1).map(String::as_str).collect();
        match (first.as_str(), &rest[..]) {
            _ if is_own => {}
            ("quit" | "exit", []) => return Ok(true),
            ("help", []) => return self.help().map(|()| false),
            ("advance", [time]) => return self.advance(time).map(|()| false),
            _ => {}
        }
        // A user's name may stand behind the command, too.
        if let Some(at) = words.iter().position(|word| word == "--user")
            && let Some(name) = words.get(at + 1)
        {
            self.make_user(&name.clone())?;
        }
        let name = std::iter::once(self.plugin.name.clone());
        let words: Vec<OsString> = name.chain(words).map(OsString::from).collect();
        let client = self.context.connect()?;
        plugins::give(self.context, client, &self.plugin, &words)?;
        Ok(false)
    }

    fn act_for(&mut self, user: String) -> Result<(), CliError> {
        self.make_user(&user)?;
        self.context.user = Some(user);
        Ok(())
    }

    /// Users are there when they are named.
    fn make_user(&mut self, name: &str) -> Result<(), CliError> {
        let list: UserList = self.client.report(&Call::UserList(NoParams {}))?;
        let mut users = list.users.iter();
        let is_there = users.any(|user| user.name == name && user.standing == UserStanding::Active);
        if !is_there {
            let name = name.to_owned();
            self.client.call(&Call::UserAdd(UserParams { name }))?;
        }
        Ok(())
    }

    fn advance(&mut self, time: &str) -> Result<(), CliError> {
        let time = duration(time)
            .ok_or_else(|| usage("`advance` wants a time: 300ms, 5s, 2m, 1h or 1d"))?;
        let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let instance = self.plugin.name.clone();
        let call = Call::PluginAdvance(PluginAdvanceParams { instance, ms });
        let told = self.client.call(&call)?;
        if self.context.output.json {
            self.context.output.value(&told)?;
        }
        Ok(())
    }

    fn help(&mut self) -> Result<(), CliError> {
        let own = self.plugin.commands.iter();
        let own = own.map(|own| (own.name.as_str(), own.about.as_str()));
        let all: Vec<_> = own.chain(BUILT_IN).collect();
        let names: Vec<_> = all.iter().map(|(name, _)| *name).collect();
        self.context
            .output
            .report(&json!({ "commands": names }), |style| {
                all.iter()
                    .map(|(name, about)| field(style, name, about))
                    .collect()
            })
    }

    /// What the plugin said since it was shown last.
    fn show_log(&mut self) -> Result<(), CliError> {
        let log: PluginLog = self.client.report(&Call::PluginLog(PluginLogParams {
            instance: self.plugin.name.clone(),
            after: self.said,
            wait: false,
        }))?;
        let output = &mut self.context.output;
        for said in &log.lines {
            self.said = said.number;
            if output.json {
                output.value(&json!({ "log": said }))?;
            } else {
                let style = output.style;
                output.text(&plugins::line(said, style))?;
            }
        }
        Ok(())
    }
}

fn record(client: &mut Client, name: &str, action: PluginRecordAction) -> Result<(), CliError> {
    let call = Call::PluginRecord(PluginRecordParams {
        instance: name.to_owned(),
        action: Some(action),
        mib: None,
    });
    client.call(&call).map(drop)
}

/// `300ms`, `5s`, `2m`, `1h`, `1d`.
fn duration(text: &str) -> Option<Duration> {
    let unit_at = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at_checked(unit_at)?;
    let number: u64 = number.parse().ok()?;
    let ms: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(ms).map(Duration::from_millis)
}

fn usage(message: &str) -> CliError {
    CliError::Usage {
        message: message.to_owned(),
        mend: "try `help`".to_owned(),
    }
}

fn exists(file: &Path) -> CliError {
    CliError::File {
        path: file.to_owned(),
        message: "is there already; name a new file".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_a_unit() {
        let ms = |text| duration(text).map(|time| time.as_millis());
        assert_eq!(ms("300ms"), Some(300));
        assert_eq!(ms("5s"), Some(5000));
        assert_eq!(ms("2m"), Some(120_000));
        assert_eq!(ms("1h"), Some(3_600_000));
        assert_eq!(ms("1d"), Some(86_400_000));
        for wrong in ["", "5", "s", "-5s", "1.5s", "5 s", "99999999999999999999s"] {
            assert_eq!(ms(wrong), None, "{wrong}");
        }
        assert_eq!(ms("999999999999999999d"), None);
    }
}
