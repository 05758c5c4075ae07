//! One script: compiled, checked, and run within its limits.

pub(crate) mod call;
mod forms;
pub(crate) mod ground;
pub(crate) mod hint;
pub(crate) mod limits;
pub(crate) mod lint;
pub(crate) mod names;
mod smells;

use std::{
    collections::{BTreeMap, BTreeSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use rhai::{
    AST, CallFnOptions, Dynamic, Engine, EvalAltResult, Module, OptimizationLevel, ParseError,
    Position, Scope,
    packages::{
        ArithmeticPackage, BasicArrayPackage, BasicIteratorPackage, BasicMapPackage,
        BasicMathPackage, BasicStringPackage, LogicPackage, MoreStringPackage, Package,
    },
};

use self::{
    call::{Call, CallTag},
    limits::{Guard, Limits},
    lint::{Dialect, Fault, Found},
};
use crate::{api, decision::Diagnostic};

/// Bytes of one script: some thousand rules. Larger tables belong into sets.
const MAX_SOURCE_BYTES: usize = 256 * 1024;
/// What one constant may hold: a copy is made wherever it is named.
const MAX_CONSTANT_BYTES: usize = 32 * 1024;

/// A script that may run.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) name: Arc<str>,
    /// Its functions of one parameter, those that may be hooks, and the line that each is on.
    hooks: BTreeMap<String, usize>,
    pub(crate) fields: BTreeSet<String>,
    engine: Engine,
    ast: AST,
}

/// Why a run ended without an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunError {
    pub(crate) line: usize,
    /// 0 when only the line is known.
    pub(crate) column: usize,
    pub(crate) message: String,
}

impl RunError {
    /// Something wrong on a line as a whole.
    pub(crate) fn on_line(line: usize, message: impl Into<String>) -> Self {
        Self {
            line,
            column: 0,
            message: message.into(),
        }
    }

    /// Whether it ran longer than a script may: another time it may not.
    pub(crate) fn is_out_of_time(&self) -> bool {
        self.message == format!("stopped: {}", limits::OUT_OF_TIME)
    }

    /// As a fault of the script called `script`.
    pub(crate) fn fault_of(self, script: &str) -> Diagnostic {
        Diagnostic {
            script: script.to_owned(),
            line: self.line,
            column: self.column,
            message: self.message,
        }
    }
}

impl Script {
    /// Compiles and checks `text`. Nothing of it runs.
    pub(crate) fn compile(name: &str, text: &str) -> Result<(Self, Found), Vec<Fault>> {
        let mut engine = new_engine(Limits::DECISION);
        let (found, constants) = check_source(&mut engine, text, Dialect::default())?;
        let mut module = Module::new();
        for (name, _, value) in constants.iter() {
            module.set_var(name, value);
        }
        module.build_index();
        let module = Arc::new(module);
        engine
            .register_global_module(module.clone())
            .register_static_module("global", module);
        engine.set_optimization_level(OptimizationLevel::Simple);
        let ast = engine
            .compile_with_scope(&constants, text)
            .map_err(|error| vec![parse_fault(&error)])?;
        let script = Self {
            name: name.into(),
            hooks: found
                .functions
                .iter()
                .filter(|(_, counts)| counts.contains(&1))
                .map(|(hook, _)| (hook.clone(), line_of(text, hook)))
                .collect(),
            fields: found.fields.clone(),
            engine,
            ast: ast.clone_functions_only(),
        };
        Ok((script, found))
    }

    pub(crate) fn has(&self, hook: &str) -> bool {
        self.hooks.contains_key(hook)
    }

    /// Where a hook is defined; 0 when the script has it not.
    pub(crate) fn line_of_hook(&self, hook: &str) -> usize {
        self.hooks.get(hook).copied().unwrap_or(0)
    }

    /// What scripts call the type of `value`.
    pub(crate) fn type_name(&self, value: &Dynamic) -> String {
        self.engine.map_type_name(value.type_name()).to_owned()
    }

    /// Runs one hook. Every failure, panics of functions included, is a [`RunError`].
    pub(crate) fn run(
        &self,
        hook: &str,
        argument: Dynamic,
        call: Arc<Call>,
    ) -> Result<Dynamic, RunError> {
        let options = CallFnOptions::new().eval_ast(false).with_tag(CallTag(call));
        let _guard = Guard::start(Limits::DECISION);
        let mut scope = Scope::new();
        // What a panic leaves half done is this call's own values, which are dropped.
        catch_unwind(AssertUnwindSafe(|| {
            self.engine.call_fn_with_options::<Dynamic>(
                options,
                &mut scope,
                &self.ast,
                hook,
                (argument,),
            )
        }))
        .map_err(|_| RunError::on_line(0, "a function of the host failed"))
        .and_then(|result| result.map_err(|error| run_error(&error)))
        .map_err(|mut error| {
            // Rhai forgets where a limit was hit.
            if error.line == 0 {
                error.line = self.line_of_hook(hook);
            }
            error
        })
    }
}

/// An engine with all that scripts may call, and nothing else.
pub(crate) fn new_engine(limits: Limits) -> Engine {
    let mut engine = Engine::new_raw();
    ArithmeticPackage::new().register_into_engine(&mut engine);
    LogicPackage::new().register_into_engine(&mut engine);
    BasicMathPackage::new().register_into_engine(&mut engine);
    BasicStringPackage::new().register_into_engine(&mut engine);
    MoreStringPackage::new().register_into_engine(&mut engine);
    BasicIteratorPackage::new().register_into_engine(&mut engine);
    BasicArrayPackage::new().register_into_engine(&mut engine);
    BasicMapPackage::new().register_into_engine(&mut engine);
    for symbol in ["eval", "print", "debug", "import", "export"] {
        engine.disable_symbol(symbol);
    }
    engine.set_optimization_level(OptimizationLevel::None);
    limits::apply(&mut engine, limits);
    api::objects::register(&mut engine);
    api::plans::register(&mut engine);
    api::verdicts::register(&mut engine);
    api::lookups::register(&mut engine);
    api::collections::register(&mut engine);
    engine
}

/// Parses and lints; also gives the script's constants.
pub(crate) fn check_source(
    engine: &mut Engine,
    text: &str,
    dialect: Dialect,
) -> Result<(Found, Scope<'static>), Vec<Fault>> {
    if text.len() > MAX_SOURCE_BYTES {
        return Err(vec![Fault::nowhere(format!(
            "a script has at most {MAX_SOURCE_BYTES} bytes; large tables belong into sets"
        ))]);
    }
    engine.set_strict_variables(false);
    let ast = engine.compile(text);
    engine.set_strict_variables(true);
    let ast = ast.map_err(|error| vec![parse_fault(&error)])?;
    let mut found = lint::lint(&ast, text, dialect);
    for fault in &mut found.faults {
        if fault.position.is_none() {
            fault.position = place_of_definition(text, &fault.message);
        }
    }
    if !found.faults.is_empty() {
        return Err(found.faults);
    }
    let mut constants = Scope::new();
    if !dialect.top_level {
        let _guard = Guard::start(Limits::DECISION);
        engine
            .run_ast_with_scope(&mut constants, &ast.clone_statements_only())
            .map_err(|error| vec![Fault::nowhere(error.to_string())])?;
        for (name, _, value) in constants.iter() {
            if limits::deep_bytes(&value) > MAX_CONSTANT_BYTES {
                return Err(vec![Fault::nowhere(format!(
                    "the constant {name} is larger than {MAX_CONSTANT_BYTES} bytes: make it a set"
                ))]);
            }
        }
    }
    Ok((found, constants))
}

pub(crate) fn parse_fault(error: &ParseError) -> Fault {
    let mut message = error.err_type().to_string();
    let mut chars = message.chars();
    if let Some(first) = chars.next() {
        message = first.to_lowercase().chain(chars).collect();
    }
    if let rhai::ParseErrorType::VariableUndefined(name) = error.err_type() {
        message = format!("no variable is called `{name}`");
    }
    Fault {
        position: error.position(),
        message,
    }
}

pub(crate) fn run_error(error: &EvalAltResult) -> RunError {
    let inner = error.unwrap_inner();
    let message = if let EvalAltResult::ErrorTerminated(reason, _) = inner {
        format!("stopped: {reason}")
    } else if let EvalAltResult::ErrorRuntime(reason, _) = inner {
        reason.to_string()
    } else {
        let mut plain = inner.to_string();
        // Rhai ends its texts with the place, which is told apart.
        if let Some(end) = plain.rfind(" (line ") {
            plain.truncate(end);
        }
        nothing_given(&plain).unwrap_or(plain)
    };
    let own = inner.position();
    let position = if own.is_none() { error.position() } else { own };
    RunError {
        line: position.line().unwrap_or(0),
        column: position.position().unwrap_or(0),
        message,
    }
}

/// The commonest mistake, a peer or a field that is not there and is not asked for first, in words
/// of this language rather than of Rhai's.
fn nothing_given(rhais: &str) -> Option<String> {
    const NOTHING: &str = "(), which is what is not there; ask `== ()` first";
    if let Some(rest) = rhais.strip_prefix("Unknown property '") {
        let (field, of) = rest.split_once('\'')?;
        return of
            .ends_with("for type '()'")
            .then(|| format!("`{field}` was asked of {NOTHING}"));
    }
    let call = rhais.strip_prefix("Function not found: ")?;
    let (function, arguments) = call.strip_suffix(')')?.split_once(" (")?;
    let mut arguments = arguments.split(", ");
    arguments
        .any(|argument| argument == "()")
        .then(|| format!("`{function}` was given {NOTHING}"))
}

/// The tree does not say where a function is defined; its text does. The name is the first word
/// in backquotes of `message`.
fn place_of_definition(text: &str, message: &str) -> Position {
    let name = message.split('`').nth(1);
    name.map_or(Position::NONE, |name| definition(text, name))
}

pub(crate) fn line_of(text: &str, name: &str) -> usize {
    definition(text, name).line().unwrap_or(0)
}

fn definition(text: &str, name: &str) -> Position {
    for (index, line) in text.lines().enumerate() {
        let Some(at) = line.find(&format!("fn {name}")) else {
            continue;
        };
        let line_number = u16::try_from(index + 1);
        let column = u16::try_from(line.get(..at).unwrap_or("").chars().count() + 4);
        if let (Ok(line_number), Ok(column)) = (line_number, column) {
            return Position::new(line_number, column);
        }
    }
    Position::NONE
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::{policy::Surroundings, script::ground::Ground};

    #[test]
    fn a_panic_of_a_function_is_an_error_of_the_script() {
        let (mut script, _) = Script::compile("s.rhai", "\nfn route(c) { hash(c) }").unwrap();
        script
            .engine
            .register_fn("hash", |_: i64| -> i64 { panic!("a fault of the host") });
        let ground = Ground::of_node(Surroundings::default(), Arc::default(), None);
        let call = Call::new("s.rhai".into(), ground.into(), SystemTime::UNIX_EPOCH);
        let error = script
            .run("route", 1_i64.into(), Arc::new(call))
            .unwrap_err();
        assert_eq!(error.line, 2);
        assert_eq!(error.message, "a function of the host failed");
    }
}
