//! `wormholes script replay`: what other scripts would have decided, over decisions that the daemon
//! keeps or that were saved. Nothing is sent to the daemon but the wish for its decisions.

use std::{
    fs::OpenOptions,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use wormholes_proto::control::{Call, DecisionList, DecisionRecord, DecisionsParams, RuleName};
use wormholes_rules::{Policy, Recording, SetRegistry};

use super::{Context, offline};
use crate::{
    args::{ReplayArgs, ScriptFiles},
    error::CliError,
    format,
    output::{Style, Tone},
    rule_files::{RuleFiles, given_sets, read},
};

/// Of the files that `--save` writes; counts up when older programs would misread them.
const FORMAT: u32 = 1;

/// What `--save` writes.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    format: u32,
    /// The newest first.
    decisions: Vec<DecisionRecord>,
}

/// What would change.
#[derive(Debug, Default, Serialize)]
struct Report {
    decisions: usize,
    same: usize,
    /// The newest first.
    changed: Vec<Change>,
    /// The same of those of which nobody can tell.
    unknown: Vec<Unknown>,
}

/// A decision.
#[derive(Debug, Serialize)]
struct Which {
    number: u64,
    at_unix_ms: u64,
    hook: &'static str,
    /// Of `route`.
    #[serde(skip_serializing_if = "Option::is_none")]
    flow: Option<u64>,
    /// A target, or who asked for what.
    about: String,
}

/// An answer and the rule that gave it.
#[derive(Debug, Serialize)]
struct Answered {
    plan: String,
    rule: Option<RuleName>,
}

#[derive(Debug, Serialize)]
struct Change {
    #[serde(flatten)]
    which: Which,
    before: Answered,
    after: Answered,
}

#[derive(Debug, Serialize)]
struct Unknown {
    #[serde(flatten)]
    which: Which,
    why: String,
}

pub(super) fn run(context: &mut Context<'_>, args: &ReplayArgs) -> Result<(), CliError> {
    let candidate = candidate(args)?;
    let decisions = match &args.from {
        Some(path) => saved(path, args.last)?,
        None => kept(context, args.last)?,
    };
    if let Some(path) = &args.save {
        save(path, &decisions)?;
    }
    let Some((policy, sets)) = candidate else {
        let saved = decisions.len();
        let report = serde_json::json!({ "decisions": saved });
        return context
            .output
            .report(&report, |_| format!("{saved} decisions saved\n"));
    };
    let report = replay(&policy, &sets, &decisions)?;
    context
        .output
        .report(&report, |style| render(&report, style))?;
    match (report.changed.len(), report.unknown.len()) {
        (0, 0) => Ok(()),
        (0, _) => Err(CliError::Unknown),
        _ => Err(CliError::Changes),
    }
}

/// The scripts to ask, and the sets that they were given; none when decisions are only saved.
fn candidate(args: &ReplayArgs) -> Result<Option<(Policy, Arc<SetRegistry>)>, CliError> {
    if args.files.is_empty() {
        return Ok(None);
    }
    let files = RuleFiles::read(&ScriptFiles {
        files: args.files.clone(),
        config: None,
        sets: args.sets.clone(),
    })?;
    let sources: Vec<_> = files
        .scripts
        .into_iter()
        .map(|(_, script)| script)
        .collect();
    match Policy::load(&sources, &files.env) {
        Ok(policy) => Ok(Some((policy, given_sets(&args.sets)?.into()))),
        Err(errors) => {
            let lines = errors.iter();
            let lines =
                lines.map(|error| offline::line(Style::default(), Tone::Bad, "error", error));
            Err(CliError::Failed(format!(
                "the scripts cannot be loaded\n{}",
                lines.collect::<String>().trim_end()
            )))
        }
    }
}

/// Those that the daemon keeps, page by page.
fn kept(context: &Context<'_>, last: Option<u32>) -> Result<Vec<DecisionRecord>, CliError> {
    let mut client = context.connect()?;
    let mut decisions: Vec<DecisionRecord> = Vec::new();
    loop {
        let have = u32::try_from(decisions.len()).unwrap_or(u32::MAX);
        let page: DecisionList = client.report(&Call::ScriptDecisions(DecisionsParams {
            before: decisions.last().map(|oldest| oldest.number),
            limit: last.map(|last| last.saturating_sub(have)),
        }))?;
        let more = page.more && !page.decisions.is_empty();
        decisions.extend(page.decisions);
        if !more {
            return Ok(decisions);
        }
    }
}

fn saved(path: &Path, last: Option<u32>) -> Result<Vec<DecisionRecord>, CliError> {
    let unread = |message: String| CliError::File {
        path: path.to_owned(),
        message,
    };
    let text = read(path)?;
    let saved: Saved = serde_json::from_str(&text)
        .map_err(|error| unread(format!("not what `script replay --save` writes: {error}")))?;
    if saved.format != FORMAT {
        let message = format!(
            "format {}, and this version reads {FORMAT}: save the decisions again",
            saved.format
        );
        return Err(unread(message));
    }
    let mut decisions = saved.decisions;
    decisions.truncate(last.map_or(usize::MAX, |last| last as usize));
    Ok(decisions)
}

fn save(path: &PathBuf, decisions: &[DecisionRecord]) -> Result<(), CliError> {
    let unwritten = |source: std::io::Error| CliError::File {
        path: path.to_owned(),
        message: format!("cannot be written: {source}"),
    };
    let saved = Saved {
        format: FORMAT,
        decisions: decisions.to_vec(),
    };
    let text = serde_json::to_string(&saved).map_err(CliError::Answer)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).map_err(unwritten)?;
    file.write_all(text.as_bytes()).map_err(unwritten)
}

fn replay(
    policy: &Policy,
    sets: &Arc<SetRegistry>,
    decisions: &[DecisionRecord],
) -> Result<Report, CliError> {
    let mut report = Report {
        decisions: decisions.len(),
        ..Report::default()
    };
    for decision in decisions {
        let recording = Recording::deserialize(&decision.recording).map_err(CliError::Answer)?;
        let which = which(decision, &recording);
        match policy.replay(&recording, sets) {
            Ok(replayed) if replayed.answer == recording.answer => report.same += 1,
            Ok(replayed) => report.changed.push(Change {
                which,
                before: Answered {
                    plan: recording.text(&recording.answer),
                    rule: recording.rule.as_ref().map(RuleName::from),
                },
                after: Answered {
                    plan: recording.text(&replayed.answer),
                    rule: replayed.trace.rule.as_ref().map(RuleName::from),
                },
            }),
            Err(why) => report.unknown.push(Unknown {
                which,
                why: why.to_string(),
            }),
        }
    }
    Ok(report)
}

fn which(decision: &DecisionRecord, recording: &Recording) -> Which {
    Which {
        number: decision.number,
        at_unix_ms: decision.at_unix_ms,
        hook: recording.question.hook(),
        flow: recording.question.flow(),
        about: recording.question.about(),
    }
}

fn render(report: &Report, style: Style) -> String {
    let mut text = String::new();
    for change in &report.changed {
        text += &heading(&change.which, style);
        text += &answer("before", &change.before);
        text += &answer("after", &change.after);
    }
    for unknown in &report.unknown {
        text += &heading(&unknown.which, style);
        text += &format!("  unknown  {}\n", format::clean(&unknown.why));
    }
    let (same, changed, unknown) = (report.same, report.changed.len(), report.unknown.len());
    let of = report.decisions;
    text += &format!(
        "of {of} decisions {changed} would change, {same} not, {unknown} cannot be told\n"
    );
    text
}

fn heading(which: &Which, style: Style) -> String {
    let asked = match which.flow {
        Some(flow) => format!("flow {flow}"),
        None => which.hook.to_owned(),
    };
    let about = format::clean(&which.about);
    let at = format::utc(which.at_unix_ms);
    format!("{} {about} at {at}\n", style.paint(Tone::Head, &asked))
}

fn answer(name: &str, answered: &Answered) -> String {
    let rule = answered.rule.as_ref();
    let rule = rule.map_or(String::new(), |rule| {
        format!(" ({})", format::rule(Some(rule)))
    });
    format!("  {name:<8} {}{rule}\n", format::clean(&answered.plan))
}
