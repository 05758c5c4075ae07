//! `wormholes script check` and `script test`: what needs no daemon.

use serde_json::json;
use wormholes_rules::{Diagnostic, Policy, TestReport, run_tests};

use crate::{
    args::ScriptFiles,
    error::CliError,
    format,
    output::{Output, Style, Tone},
    rule_files::{RuleFiles, read_cases},
};

pub(super) fn check(
    output: &mut Output,
    args: &ScriptFiles,
    deny_warnings: bool,
) -> Result<(), CliError> {
    let files = RuleFiles::read(args)?;
    let sources: Vec<_> = files.scripts.iter().map(|(_, s)| s.clone()).collect();
    let names: Vec<&str> = sources.iter().map(|source| source.name.as_str()).collect();
    let (errors, warnings) = match Policy::load(&sources, &files.env) {
        Ok(policy) => (Vec::new(), policy.warnings().to_vec()),
        Err(errors) => (errors, Vec::new()),
    };
    let ok = errors.is_empty() && (warnings.is_empty() || !deny_warnings);
    if output.json {
        output.value(&json!({
            "ok": ok,
            "scripts": names,
            "errors": errors,
            "warnings": warnings,
            "empty_sets": files.empty_sets,
        }))?;
        return done(ok);
    }
    for error in &errors {
        output.text(&line(output.style, Tone::Bad, "error", error))?;
    }
    for warning in &warnings {
        output.text(&line(output.style, Tone::Head, "warning", warning))?;
    }
    for set in &files.empty_sets {
        let set = format::clean(set);
        output.text(&format!(
            "note: set \"{set}\" is taken as empty; --set {set}=FILE fills it\n"
        ))?;
    }
    if ok {
        output.text(&format!("{}: good\n", format::clean(&names.join(", "))))?;
    }
    done(ok)
}

pub(super) fn test(output: &mut Output, args: &ScriptFiles) -> Result<(), CliError> {
    let files = RuleFiles::read(args)?;
    let mut reports = Vec::new();
    for (path, script) in &files.scripts {
        reports.push(match read_cases(path)? {
            Some(cases) => run_tests(script, &cases),
            None => without_cases(&script.name),
        });
    }
    let passed = reports.iter().all(TestReport::passed);
    if output.json {
        output.value(&json!({ "ok": passed, "scripts": reports }))?;
        return done(passed);
    }
    for report in &reports {
        output.text(&render(report, output.style))?;
    }
    done(passed)
}

fn without_cases(script: &str) -> TestReport {
    let fault = Diagnostic {
        script: script.to_owned(),
        line: 0,
        column: 0,
        message: "no cases beside it (NAME.test.rhai)".to_owned(),
    };
    TestReport {
        script: script.to_owned(),
        faults: vec![fault],
        ..TestReport::default()
    }
}

fn render(report: &TestReport, style: Style) -> String {
    let failures = report.cases.iter().filter(|case| case.failure.is_some());
    let failed = failures.clone().count();
    let passed = report.cases.len() - failed;
    let verdict = if report.passed() {
        style.paint(Tone::Good, "ok")
    } else {
        style.paint(Tone::Bad, "FAILED")
    };
    let name = format::clean(&report.script);
    let mut text = format!("{name}: {verdict}, {passed} passed, {failed} failed\n");
    for case in failures {
        if let Some(failure) = &case.failure {
            let (name, failure) = (
                format::clean(&case.name),
                format::diagnostic(&failure.into()),
            );
            text += &format!("  {name}\n    {failure}\n");
        }
    }
    for fault in &report.faults {
        text += &format!("  {}\n", format::diagnostic(&fault.into()));
    }
    text
}

/// A fault as compilers print it.
pub(super) fn line(style: Style, tone: Tone, word: &str, diagnostic: &Diagnostic) -> String {
    let place = format::diagnostic(&diagnostic.into());
    format!("{}: {place}\n", style.paint(tone, word))
}

/// All is said; only the exit status is missing.
fn done(ok: bool) -> Result<(), CliError> {
    if ok { Ok(()) } else { Err(CliError::Told) }
}
