//! Reads a script's tree and refuses what cannot work or must not run, by line and column.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a tree has some fifty kinds of nodes, of which few matter here"
)]

use std::collections::{BTreeMap, BTreeSet};

use rhai::{AST, ASTFlags, ASTNode, Expr, FnCallExpr, Position, Stmt};

use super::{forms, hint::nearest, names, smells};
use crate::{
    api::{objects::fields_of, plans},
    view::EVENT_KINDS,
};

/// Parameters of one function, and arguments of one call.
const MAX_ARGUMENTS: usize = 16;

/// A fault, with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) position: Position,
    pub(crate) message: String,
}

impl Fault {
    /// A fault of the whole.
    pub(crate) fn nowhere(message: impl Into<String>) -> Self {
        Self {
            position: Position::NONE,
            message: message.into(),
        }
    }
}

/// What a script names, for checks against the node that runs it.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) faults: Vec<Fault>,
    pub(crate) hooks: BTreeSet<String>,
    pub(crate) fields: BTreeSet<String>,
    pub(crate) sets: Vec<(String, Position)>,
    /// Sets in the list of a `first_set`, which may be missing.
    pub(crate) listed_sets: Vec<(String, Position)>,
    pub(crate) peers: Vec<(String, Position)>,
    /// What is odd and yet no fault.
    pub(crate) warnings: Vec<Fault>,
    /// It calls `pass()` somewhere.
    pub(crate) passes: bool,
    /// How many parameters each of its functions takes.
    pub(crate) functions: BTreeMap<String, BTreeSet<usize>>,
    /// Those that it does not call itself and that are no hooks.
    pub(crate) uncalled: Vec<String>,
    /// Where it calls `bill`.
    pub(crate) bills: Vec<Position>,
    /// Where it makes tunnels that not every node has, and what with.
    pub(crate) tunnels: Vec<(String, Position)>,
}

/// What a script may name beyond the common names.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Dialect {
    /// Functions of the test bench.
    pub(crate) functions: &'static [&'static str],
    /// Statements may stand outside functions.
    pub(crate) top_level: bool,
}

struct Linter<'a> {
    dialect: Dialect,
    found: Found,
    own_functions: Vec<String>,
    /// How many parameters each function of the script takes.
    parameters: BTreeMap<&'a str, BTreeSet<usize>>,
    /// Variables that are a hook's argument wherever they appear, and the fields each has.
    arguments: BTreeMap<&'a str, Vec<&'static str>>,
    map_keys: BTreeSet<String>,
    called: BTreeSet<String>,
}

/// Walks `ast`, which must not be optimised: what is optimised away is refused too. It was parsed of
/// `text`.
pub(crate) fn lint(ast: &AST, text: &str, dialect: Dialect) -> Found {
    let mut linter = Linter {
        dialect,
        found: Found::default(),
        own_functions: Vec::new(),
        parameters: BTreeMap::new(),
        arguments: BTreeMap::new(),
        map_keys: BTreeSet::new(),
        called: BTreeSet::new(),
    };
    linter.definitions(ast);
    ast.walk(&mut |path| {
        linter.collect(path);
        true
    });
    linter.arguments_of_hooks(ast);
    if !dialect.top_level {
        linter.top_level(ast);
    }
    ast.walk(&mut |path| {
        linter.node(path);
        true
    });
    linter.limits_of_accept(ast);
    linter.uncalled(ast);
    linter.found.passes = linter.called.contains("pass");
    let functions = linter.parameters.iter();
    linter.found.functions = functions
        .map(|(name, counts)| ((*name).to_owned(), counts.clone()))
        .collect();
    if !dialect.top_level {
        linter.found.warnings = smells::find(ast, text);
    }
    linter.found
}

/// The relay in `punch(#{ via: relay })`.
fn relay_of_punch(options: Option<&Expr>) -> Option<&Expr> {
    let Some(Expr::Map(options, _)) = options else {
        return None;
    };
    let via = options.0.iter().find(|(key, _)| key.name.as_str() == "via");
    via.map(|(_, relay)| relay)
}

impl<'a> Linter<'a> {
    fn fault(&mut self, position: Position, message: impl Into<String>) {
        self.found.faults.push(Fault {
            position,
            message: message.into(),
        });
    }

    fn check(&mut self, position: Position, result: Result<(), String>) {
        if let Err(message) = result {
            self.fault(position, message);
        }
    }

    fn definitions(&mut self, ast: &'a AST) {
        let extra = self.dialect.functions.iter().map(|&name| name.to_owned());
        self.own_functions = extra.collect();
        for function in ast.iter_functions() {
            let (name, parameters) = (function.name, function.params.len());
            if parameters > MAX_ARGUMENTS {
                let message = format!("`{name}` takes more than {MAX_ARGUMENTS} parameters");
                self.fault(Position::NONE, message);
            }
            if name.starts_with("anon$") {
                continue;
            }
            self.check(Position::NONE, names::check_definition(name, parameters));
            self.own_functions.push(name.to_owned());
            let counts = self.parameters.entry(name).or_default();
            counts.insert(parameters);
            if names::HOOKS.iter().any(|(hook, _)| *hook == name) {
                self.found.hooks.insert(name.to_owned());
            }
        }
    }

    /// First walk: names whose meaning the second needs.
    fn collect(&mut self, path: &[ASTNode]) {
        match path.last() {
            Some(ASTNode::Expr(Expr::Map(map, _))) => {
                let keys = map.0.iter().map(|(key, _)| key.name.to_string());
                self.map_keys.extend(keys);
            }
            Some(ASTNode::Expr(Expr::FnCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _))) => {
                self.called.insert(call.name.to_string());
            }
            _ => {}
        }
    }

    /// The variable that a hook's argument is, unless the script uses its name for other things.
    fn arguments_of_hooks(&mut self, ast: &'a AST) {
        let mut others = BTreeSet::new();
        ast.walk(&mut |path| {
            match path.last() {
                Some(ASTNode::Stmt(Stmt::Var(var, ..))) => {
                    others.insert(var.0.name.to_string());
                }
                Some(ASTNode::Stmt(Stmt::For(parts, _))) => {
                    others.insert(parts.0.name.to_string());
                    others.extend(parts.1.as_ref().map(|counter| counter.name.to_string()));
                }
                _ => {}
            }
            true
        });
        for function in ast.iter_functions() {
            match (fields_of(function.name), function.params.as_slice()) {
                (Some(fields), [parameter]) => {
                    // Two hooks with one name for their arguments: fields of either.
                    self.arguments.entry(parameter).or_default().extend(fields);
                }
                _ => others.extend(function.params.iter().map(|&name| name.to_owned())),
            }
        }
        self.arguments.retain(|name, _| !others.contains(*name));
    }

    /// Outside functions stand constants only: nothing runs before a hook is called.
    fn top_level(&mut self, ast: &AST) {
        for statement in ast.statements() {
            let constant = match statement {
                Stmt::Noop(_) => true,
                Stmt::Var(var, flags, _) => {
                    flags.intersects(ASTFlags::CONSTANT) && var.1.is_constant()
                }
                _ => false,
            };
            if !constant {
                self.fault(
                    statement.position(),
                    "outside functions a rule script has only constants: const NAME = value",
                );
            }
        }
    }

    fn node(&mut self, path: &[ASTNode]) {
        match path.last() {
            Some(ASTNode::Expr(expr)) => self.expr(path, expr),
            Some(ASTNode::Stmt(Stmt::FnCall(call, position))) => {
                self.call(path, call, *position, false);
            }
            Some(ASTNode::Stmt(Stmt::Import(_, position) | Stmt::Export(_, position))) => {
                self.fault(*position, "rule scripts have no modules");
            }
            _ => {}
        }
    }

    fn expr(&mut self, path: &[ASTNode], expr: &Expr) {
        match expr {
            Expr::FnCall(call, position) => self.call(path, call, *position, false),
            Expr::MethodCall(call, position) => self.call(path, call, *position, true),
            Expr::Property(property, position) => {
                let name = property.2.as_str();
                self.found.fields.insert(name.to_owned());
                if !self.map_keys.contains(name) {
                    self.check(*position, names::check_field(name));
                }
            }
            Expr::Dot(parts, ..) => {
                if let Expr::FnCall(call, position) = &parts.lhs
                    && call.name == "pass"
                {
                    self.fault(*position, "pass() takes no methods");
                }
                if let Expr::FnCall(call, _) = &parts.lhs
                    && call.name == "tor"
                {
                    self.follows_tor(&parts.rhs);
                }
                if let Expr::Variable(variable, ..) = &parts.lhs {
                    self.field_of(&variable.1, &parts.rhs);
                }
            }
            Expr::ThisPtr(position) => {
                self.fault(*position, "`this` is not available in rule scripts");
            }
            Expr::Stmt(block) => {
                if let Some(Stmt::Share(outer)) = block.statements().first() {
                    let outer: Vec<&str> = outer.iter().map(|(name, _)| name.as_str()).collect();
                    self.capture(path, &outer, expr.start_position());
                }
            }
            _ => {}
        }
    }

    /// `c.something`, where `c` is the argument of a hook.
    fn field_of(&mut self, variable: &str, rest: &Expr) {
        let property = match rest {
            Expr::Dot(parts, ..) | Expr::Index(parts, ..) => &parts.lhs,
            other => other,
        };
        let (Expr::Property(property, position), Some(fields)) =
            (property, self.arguments.get(variable))
        else {
            return;
        };
        let name = property.2.as_str();
        if fields.contains(&name) || names::check_field(name).is_err() {
            return;
        }
        let hint = match nearest(name, fields.iter().copied()) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => String::new(),
        };
        let message = format!("`{variable}` has no field `{name}`{hint}");
        self.fault(*position, message);
    }

    /// What follows `tor()` in its chain, up to the next tunnel.
    fn follows_tor(&mut self, rest: &Expr) {
        let (method, rest) = match rest {
            Expr::Dot(parts, ..) => (&parts.lhs, Some(&parts.rhs)),
            last => (last, None),
        };
        let Expr::MethodCall(call, position) = method else {
            return;
        };
        let checked = plans::check_after_tor(&call.name);
        self.check(*position, checked);
        let goes_on = !matches!(call.name.as_str(), "or" | "step" | "race");
        if let Some(rest) = rest.filter(|_| goes_on) {
            self.follows_tor(rest);
        }
    }

    fn call(&mut self, path: &[ASTNode], call: &FnCallExpr, position: Position, method: bool) {
        let name = call.name.as_str();
        if !call.namespace.is_empty() || call.capture_parent_scope {
            self.fault(position, "rule scripts have no modules");
        }
        // A closure that uses outer variables is this call, in a block that only the parser makes.
        if name == "curry" && !method && in_capture(path) {
            return;
        }
        self.check(position, names::check_function(name, &self.own_functions));
        if call.args.len() > MAX_ARGUMENTS {
            let message = format!("a call has at most {MAX_ARGUMENTS} arguments");
            self.fault(position, message);
        }
        if !self.dialect.top_level {
            self.arguments_of(call, position, method);
        }
        if matches!(name, "==" | "!=") {
            self.kind_of_event(call);
        }
        let first = call.args.first();
        match (name, method) {
            ("need", _) => self.need(call, position),
            ("log", true) => {
                let message = "a verdict has no `log` in this build; targets are never logged \
                               at level info; for a line of log write log(\"info\", text)";
                self.fault(position, message);
            }
            ("exit", false) if !self.dialect.top_level => {
                self.fault(position, "exit() follows a plan: direct().to(peer).exit()");
            }
            ("relay", false) if self.found.hooks.contains("relay") => {
                let message =
                    "the hook relay(q) hides relay(name) in this script: write peer(name)";
                self.fault(position, message);
            }
            ("bill", _) => self.found.bills.push(position),
            ("tor" | "i2p", false) => self.found.tunnels.push((name.to_owned(), position)),
            ("set", false) => self.literal(first, |found| &mut found.sets),
            ("peer" | "relay", false) | ("relayed", true) => {
                self.literal(first, |found| &mut found.peers)
            }
            ("punch", true) => self.literal(relay_of_punch(first), |found| &mut found.peers),
            ("first_set", false) => {
                if let Some(Expr::Array(items, _)) = call.args.get(1) {
                    for item in items.iter() {
                        self.literal(Some(item), |found| &mut found.listed_sets);
                    }
                }
            }
            _ => {}
        }
    }

    fn need(&mut self, call: &FnCallExpr, position: Position) {
        if let Some(Expr::StringConstant(field, position)) = call.args.first()
            && field != "ip"
        {
            let message = format!("need(\"{field}\") is not in this build; need(\"ip\", plan) is");
            self.fault(*position, message);
        }
        if call.args.len() != 2 {
            self.fault(
                position,
                "need() wants the plan that the look-up travels by: need(\"ip\", onion(3))",
            );
        }
    }

    /// `e.kind == "something"`: a kind that there is not would never come.
    fn kind_of_event(&mut self, call: &FnCallExpr) {
        let kind = call.args.iter().find_map(|argument| match argument {
            Expr::StringConstant(kind, position) => Some((kind, *position)),
            _ => None,
        });
        let is_asked = call.args.iter().any(|argument| match argument {
            Expr::Dot(parts, ..) => match (&parts.lhs, &parts.rhs) {
                (Expr::Variable(variable, ..), Expr::Property(property, _)) => {
                    let fields = self.arguments.get(variable.1.as_str());
                    property.2 == "kind" && fields.is_some_and(|fields| fields.contains(&"kind"))
                }
                _ => false,
            },
            _ => false,
        });
        if let Some((kind, position)) = kind
            && is_asked
            && !EVENT_KINDS.contains(&kind.as_str())
        {
            let known = EVENT_KINDS.join(" and ");
            let message = format!("no event is a `{kind}` in this build; there are {known}");
            self.fault(position, message);
        }
    }

    /// How many arguments a call has, and those that stand there as such.
    fn arguments_of(&mut self, call: &FnCallExpr, position: Position, method: bool) {
        let (name, given) = (call.name.as_str(), call.args.len());
        if let Some(counts) = self.parameters.get(name) {
            if !counts.contains(&given) {
                let counts: Vec<_> = counts.iter().map(ToString::to_string).collect();
                let counts = counts.join(" or ");
                let message =
                    format!("`{name}` of this script takes {counts} arguments, not {given}");
                self.fault(position, message);
            }
            return;
        }
        let object = usize::from(method);
        let checked = match (name, method) {
            // These two say more of their own.
            ("need", _) | ("exit", false) => Ok(()),
            _ => forms::check_count(name, given + object),
        };
        if let Err(message) = checked {
            return self.fault(position, message);
        }
        for (index, argument) in call.args.iter().enumerate() {
            let place = (index + object, given + object);
            let faults = forms::check_argument(name, place, argument);
            self.found.faults.extend(faults);
        }
    }

    fn literal(
        &mut self,
        expr: Option<&Expr>,
        list: impl FnOnce(&mut Found) -> &mut Vec<(String, Position)>,
    ) {
        if let Some(Expr::StringConstant(text, position)) = expr {
            list(&mut self.found).push((text.to_string(), *position));
        }
    }

    /// A closure that uses outer variables makes them shared. Kept in a variable it could hold
    /// itself, and such a ring is never freed; as an argument of these functions it cannot.
    fn capture(&mut self, path: &[ASTNode], outer: &[&str], position: Position) {
        let above = path.split_last().map_or(path, |(_, above)| above);
        // Rhai waits 50 ms for the lock of a shared value, even when its own thread holds it: while
        // a method runs, its object is locked.
        let locked = above.iter().filter_map(object_of);
        if let Some(name) = locked
            .into_iter()
            .find(|name| outer.contains(&name.as_str()))
        {
            let message = format!(
                "`{name}` is used by a closure that is given to its own method: copy what the \
                 closure needs into a variable first"
            );
            self.fault(position, message);
        }
        let parent = path.iter().rev().nth(1);
        let allowed = match parent {
            Some(
                ASTNode::Expr(Expr::FnCall(call, _) | Expr::MethodCall(call, _))
                | ASTNode::Stmt(Stmt::FnCall(call, _)),
            ) => names::takes_closure(&call.name) || self.dialect.functions.contains(&&*call.name),
            _ => false,
        };
        if !allowed {
            self.fault(
                position,
                "a closure that uses outer variables goes straight into filter, map, sort or the like",
            );
        }
    }

    /// Limits on who connects are kept by nobody. Those that a helper adds are refused when it runs.
    fn limits_of_accept(&mut self, ast: &AST) {
        let accept = ast.iter_fn_def().filter(|hook| hook.name == "accept");
        let bodies: Vec<_> = accept
            .map(|hook| hook.body.start_position()..=hook.body.end_position())
            .collect();
        ast.walk(&mut |path| {
            if let Some(ASTNode::Expr(Expr::MethodCall(call, position))) = path.last()
                && names::LIMITS.contains(&call.name.as_str())
                && bodies.iter().any(|body| body.contains(position))
            {
                self.fault(*position, format!("`{}`: {}", call.name, names::NO_LIMITS));
            }
            true
        });
    }

    fn uncalled(&mut self, ast: &AST) {
        for function in ast.iter_functions() {
            let name = function.name;
            if name.starts_with("anon$")
                || self.called.contains(name)
                || self.found.hooks.contains(name)
            {
                continue;
            }
            if let Some(hook) = names::misspelt_hook(name) {
                let message = format!("nothing calls `{name}`; did you mean the hook `{hook}`?");
                self.fault(Position::NONE, message);
            }
            self.found.uncalled.push(name.to_owned());
        }
    }
}

/// The variable that stays locked while the rest of `node` runs.
fn object_of(node: &ASTNode) -> Option<String> {
    let object = match node {
        ASTNode::Expr(Expr::Dot(parts, ..) | Expr::Index(parts, ..)) => Some(&parts.lhs),
        ASTNode::Expr(Expr::FnCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _)) => {
            call.args.first()
        }
        _ => None,
    };
    match object {
        Some(Expr::Variable(variable, ..)) => Some(variable.1.to_string()),
        _ => None,
    }
}

fn starts_with_share(statements: &[Stmt]) -> bool {
    matches!(statements.first(), Some(Stmt::Share(..)))
}

/// Whether the call at the end of `path` is the one that makes a closure with outer variables.
fn in_capture(path: &[ASTNode]) -> bool {
    path.iter().rev().skip(1).take(3).any(|node| match node {
        ASTNode::Expr(Expr::Stmt(block)) => starts_with_share(block.statements()),
        _ => false,
    })
}
