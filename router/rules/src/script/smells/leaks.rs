//! Open plans with which `route` answers for names that must not leave in clear. Values are followed
//! over branches, blocks, variables and the script's own functions, wherever the text decides.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use rhai::{
    AST, ASTFlags, Engine, Expr, FlowControl, FnCallExpr, OptimizationLevel, Position, Stmt,
    StmtBlock, SwitchCasesCollection,
};
use wormholes_proto::is_special_use;

use super::{Function, last_call, stops};

/// What makes a plan that leads somewhere. `to` does of a node: `relay("name").to(peer)`.
const MAKERS: &[&str] = &[
    "best", "direct", "i2p", "onion", "plan", "punch", "relayed", "socks", "to", "tor",
];
/// Fields that hold names of hosts. Others hold words of the operator, of programs and of plugins, who
/// may call theirs `onion` or `bob.local`.
const HOSTS: &[&str] = &["domain", "host", "sni"];
/// Variables that are followed at once. Overflow: later ones are not; a script with so many ends
/// when it runs.
const MAX_VARIABLES: usize = 48;
/// Plans of each sort that one value may be. Overflow: later ones are not told of.
const MAX_PLANS: usize = 32;
/// Functions that call each other: each takes some stack here. Overflow: what is below is not known.
const MAX_DEPTH: usize = 4;
/// Statements and values looked at, ten times what people put into a script of the greatest size:
/// functions are followed again for each plan that they are given. Overflow: no function is followed
/// any more, and what those answer that were not is not known.
const MAX_LOOKS: usize = 1 << 18;

/// What is known of a value.
#[derive(Clone, Default)]
struct Value {
    /// Open plans that it may be, by where they were made.
    open: BTreeSet<Position>,
    /// Those that are for names of special use.
    leaks: BTreeSet<Position>,
    /// It may be a closed plan.
    closed: bool,
}

#[derive(Clone)]
struct Variable<'a> {
    name: &'a str,
    value: Value,
}

/// A loop that runs: what holds behind it.
struct Loop<'a> {
    variables: Vec<Variable<'a>>,
    value: Value,
}

struct Follower<'a> {
    functions: &'a [Function],
    /// Names of special use, as `switch` knows them.
    cases: BTreeSet<u64>,
    /// Those of them with a dot.
    dotted: BTreeSet<u64>,
    variables: Vec<Variable<'a>>,
    loops: Vec<Loop<'a>>,
    /// What `return` gave, in the function at hand.
    returned: Value,
    /// What functions answer that are given no plan, by their name, number of arguments, and whether
    /// they are asked about names of special use only; none while they are followed.
    known: BTreeMap<(&'a str, usize, bool), Option<Value>>,
    /// A function was not followed, below the one at hand: what that answers is known in part.
    is_cut: bool,
    depth: usize,
    looks: usize,
}

/// Where `route` of a script makes such plans.
pub(super) fn find(functions: &[Function], text: &str) -> BTreeSet<Position> {
    let mut follower = Follower {
        functions,
        cases: special_cases(text, |_| true),
        dotted: special_cases(text, has_dot),
        variables: Vec::new(),
        loops: Vec::new(),
        returned: Value::default(),
        known: BTreeMap::new(),
        is_cut: false,
        depth: 0,
        looks: 0,
    };
    let answer = follower.own("route", &[Value::default()], false);
    answer.unwrap_or_default().leaks
}

impl Value {
    /// An open plan.
    fn open(position: Position, special: bool) -> Self {
        let mut value = Self::default();
        let places = if special {
            &mut value.leaks
        } else {
            &mut value.open
        };
        places.insert(position);
        value
    }

    fn closed() -> Self {
        Self {
            closed: true,
            ..Self::default()
        }
    }

    /// It may be `other` too.
    fn or(&mut self, other: &Self) {
        add(&mut self.open, &other.open);
        add(&mut self.leaks, &other.leaks);
        self.closed |= other.closed;
    }

    fn is_open(&self) -> bool {
        !self.open.is_empty() || !self.leaks.is_empty()
    }

    fn is_plan(&self) -> bool {
        self.closed || self.is_open()
    }
}

impl<'a> Follower<'a> {
    /// Statements one after the other; their value is that of the last one. `special`: they run for
    /// names of special use, or for some of them.
    fn block(&mut self, statements: &'a [Stmt], mut special: bool) -> Value {
        let depth = self.variables.len();
        let mut value = Value::default();
        for statement in statements {
            value = self.statement(statement, special);
            special |= leaves_special(statement);
        }
        self.variables.truncate(depth);
        value
    }

    fn statement(&mut self, statement: &'a Stmt, special: bool) -> Value {
        self.looks += 1;
        match statement {
            Stmt::Expr(expr) => return self.value(expr, special),
            Stmt::FnCall(call, position) => return self.call(call, None, *position, special),
            Stmt::If(parts, _) => return self.branches(parts, special),
            Stmt::Switch(parts, _) => return self.switch(&parts.0, &parts.1, special),
            Stmt::Block(block) => return self.block(block.statements(), special),
            Stmt::While(parts, _) | Stmt::Do(parts, ..) => {
                return self.rounds(&parts.expr, &parts.body, special);
            }
            Stmt::For(parts, _) => return self.rounds(&parts.2.expr, &parts.2.body, special),
            Stmt::TryCatch(parts, _) => {
                let before = self.variables.clone();
                let mut value = self.block(parts.body.statements(), special);
                join(&mut self.variables, &before);
                value.or(&self.block(parts.branch.statements(), special));
                return value;
            }
            Stmt::Return(Some(answer), flags, _) => {
                let value = self.value(answer, special);
                let is_throw = flags.intersects(ASTFlags::BREAK);
                if !is_throw {
                    self.returned.or(&value);
                }
            }
            Stmt::BreakLoop(answer, ..) => {
                let value = answer.as_deref().map(|answer| self.value(answer, special));
                if let Some(last) = self.loops.last_mut() {
                    join(&mut last.variables, &self.variables);
                    last.value.or(&value.unwrap_or_default());
                }
            }
            Stmt::Var(variable, ..) => {
                let value = self.value(&variable.1, special);
                let name = variable.0.name.as_str();
                if self.variables.len() < MAX_VARIABLES {
                    self.variables.push(Variable { name, value });
                }
            }
            Stmt::Assignment(parts) => {
                let value = self.value(&parts.1.rhs, special);
                self.assign(&parts.1.lhs, value, parts.0.is_op_assignment());
            }
            _ => {}
        }
        Value::default()
    }

    fn assign(&mut self, to: &Expr, value: Value, adds: bool) {
        let Expr::Variable(variable, ..) = to else {
            return;
        };
        let name = variable.1.as_str();
        let mut known = self.variables.iter_mut();
        if let Some(known) = known.rfind(|known| known.name == name) {
            match adds {
                true => known.value.or(&value),
                false => known.value = value,
            }
        }
    }

    /// `if … else …`. What ends in a branch does not come behind both.
    fn branches(&mut self, parts: &'a FlowControl, special: bool) -> Value {
        self.value(&parts.expr, special);
        let before = self.variables.clone();
        let asked = special || asks_for_special(&parts.expr);
        let mut value = self.block(parts.body.statements(), asked);
        let after = mem::replace(&mut self.variables, before);
        let others = special || asks_for_others(&parts.expr);
        value.or(&self.block(parts.branch.statements(), others));
        if ends(&parts.branch) {
            self.variables = after;
        } else if !ends(&parts.body) {
            join(&mut self.variables, &after);
        }
        value
    }

    fn switch(
        &mut self,
        subject: &'a Expr,
        cases: &'a SwitchCasesCollection,
        special: bool,
    ) -> Value {
        self.value(subject, special);
        let names = match is_of_host(subject) {
            Some(true) => Some(&self.cases),
            Some(false) => None,
            None => Some(&self.dotted),
        };
        let listed = cases.cases.iter();
        let named: BTreeSet<usize> = listed
            .filter(|(case, _)| names.is_some_and(|names| names.contains(*case)))
            .flat_map(|(_, arms)| arms.blocks.iter().copied())
            .collect();
        let before = self.variables.clone();
        let mut after = cases.def_case.is_none().then(|| before.clone());
        let mut value = Value::default();
        for (index, arm) in cases.expressions.iter().enumerate() {
            self.variables.clone_from(&before);
            self.value(&arm.lhs, special);
            let asked = special || named.contains(&index) || asks_for_special(&arm.lhs);
            value.or(&self.value(&arm.rhs, asked));
            let goes_on = !matches!(&arm.rhs, Expr::Stmt(block) if ends(block));
            if goes_on {
                let after = after.get_or_insert_with(|| self.variables.clone());
                join(after, &self.variables);
            }
        }
        if let Some(after) = after {
            self.variables = after;
        }
        value
    }

    /// A loop, whose value is that of `break`.
    fn rounds(&mut self, head: &'a Expr, body: &'a StmtBlock, special: bool) -> Value {
        self.value(head, special);
        self.loops.push(Loop {
            variables: self.variables.clone(),
            value: Value::default(),
        });
        self.block(body.statements(), special || asks_for_special(head));
        let Some(mut left) = self.loops.pop() else {
            return Value::default();
        };
        join(&mut left.variables, &self.variables);
        self.variables = left.variables;
        left.value
    }

    fn value(&mut self, expr: &'a Expr, special: bool) -> Value {
        self.looks += 1;
        match expr {
            Expr::Stmt(block) => self.block(block.statements(), special),
            Expr::Variable(variable, _, position) => self.held(&variable.1, *position, special),
            Expr::FnCall(call, position) => self.call(call, None, *position, special),
            Expr::Dot(parts, ..) => {
                let value = self.value(&parts.lhs, special);
                self.chain(&parts.rhs, value, expr.start_position(), special)
            }
            Expr::Index(parts, flags, _) => {
                self.value(&parts.lhs, special);
                self.indexed(&parts.rhs, *flags, special)
            }
            Expr::Coalesce(parts, _) => self.any(parts.iter(), special),
            Expr::And(parts, _) | Expr::Or(parts, _) => {
                self.any(parts.iter(), special);
                Value::default()
            }
            Expr::Array(items, _) | Expr::InterpolatedString(items, _) => {
                self.any(items.iter(), special);
                Value::default()
            }
            Expr::Map(map, _) => {
                self.any(map.0.iter().map(|(_, value)| value), special);
                Value::default()
            }
            _ => Value::default(),
        }
    }

    fn any(&mut self, exprs: impl Iterator<Item = &'a Expr>, special: bool) -> Value {
        let mut any = Value::default();
        for expr in exprs {
            any.or(&self.value(expr, special));
        }
        any
    }

    /// What a variable holds. A plan that was made for all names leaks where it is taken for some.
    fn held(&self, name: &str, position: Position, special: bool) -> Value {
        let known = self.variables.iter().rfind(|known| known.name == name);
        let mut value = known.map(|known| known.value.clone()).unwrap_or_default();
        if special && !value.open.is_empty() {
            value.open.clear();
            value.leaks.insert(position);
        }
        value
    }

    /// What follows the first dot of `value.one().two()`.
    fn chain(&mut self, rest: &'a Expr, value: Value, at: Position, special: bool) -> Value {
        match rest {
            Expr::Dot(parts, ..) => {
                let value = self.chain(&parts.lhs, value, at, special);
                self.chain(&parts.rhs, value, at, special)
            }
            Expr::Index(parts, flags, _) => {
                self.chain(&parts.lhs, value, at, special);
                self.indexed(&parts.rhs, *flags, special)
            }
            Expr::MethodCall(call, _) => self.call(call, Some(value), at, special),
            _ => value,
        }
    }

    /// What follows `list[`: an index, and the rest of the chain unless `flags` say that it ends.
    fn indexed(&mut self, rest: &'a Expr, flags: ASTFlags, special: bool) -> Value {
        let value = self.value(rest, special);
        match flags.intersects(ASTFlags::BREAK) {
            true => Value::default(),
            false => value,
        }
    }

    /// `object.name(…)`, or `name(…)`, where the first argument may stand for the object.
    fn call(
        &mut self,
        call: &'a FnCallExpr,
        object: Option<Value>,
        position: Position,
        special: bool,
    ) -> Value {
        let arguments: Vec<Value> = call
            .args
            .iter()
            .map(|argument| self.value(argument, special))
            .collect();
        let name = call.name.as_str();
        if let Some(value) = self.own(name, &arguments, special) {
            return value;
        }
        let mut arguments = arguments.into_iter();
        let value = object.or_else(|| arguments.next()).unwrap_or_default();
        match name {
            "closed" => Value::closed(),
            // It is asked again with the address, and that answer counts.
            "need" => Value::default(),
            // One closed part closes the whole.
            "or" | "step" | "race" if arguments.any(|part| part.closed && !part.is_open()) => {
                Value::closed()
            }
            _ if MAKERS.contains(&name) && !value.is_plan() => Value::open(position, special),
            _ => value,
        }
    }

    /// What a function of the script answers to these; none when it has no such function.
    fn own(&mut self, name: &str, arguments: &[Value], special: bool) -> Option<Value> {
        let functions = self.functions;
        let function = functions
            .iter()
            .find(|own| own.name == name && own.parameters.len() == arguments.len())?;
        let key = (function.name.as_str(), arguments.len(), special);
        // What it answers to plans depends on which they are.
        let is_kept = !arguments.iter().any(Value::is_plan);
        let known = self.known.get(&key).filter(|_| is_kept);
        if let Some(Some(known)) = known {
            return Some(known.clone());
        }
        let calls_itself = known.is_some();
        if calls_itself || self.depth == MAX_DEPTH || self.looks >= MAX_LOOKS {
            self.is_cut = true;
            return Some(Value::default());
        }
        if is_kept {
            self.known.insert(key, None);
        }
        let was_cut = mem::take(&mut self.is_cut);
        let value = self.follow(function, arguments, special);
        if is_kept {
            // A part of an answer is no answer to who asks from elsewhere.
            match self.is_cut {
                true => self.known.remove(&key),
                false => self.known.insert(key, Some(value.clone())),
            };
        }
        self.is_cut |= was_cut;
        Some(value)
    }

    fn follow(&mut self, function: &'a Function, arguments: &[Value], special: bool) -> Value {
        let names = function.parameters.iter().map(String::as_str);
        let given = names.zip(arguments).take(MAX_VARIABLES);
        let given = given.map(|(name, value)| Variable {
            name,
            value: value.clone(),
        });
        let variables = mem::replace(&mut self.variables, given.collect());
        let loops = mem::take(&mut self.loops);
        let returned = mem::take(&mut self.returned);
        self.depth += 1;
        let mut value = self.block(&function.body, special);
        self.depth -= 1;
        value.or(&mem::replace(&mut self.returned, returned));
        self.variables = variables;
        self.loops = loops;
        value
    }
}

fn add(places: &mut BTreeSet<Position>, others: &BTreeSet<Position>) {
    for place in others {
        if places.len() < MAX_PLANS {
            places.insert(*place);
        }
    }
}

/// Variables that may hold what they hold in `others` too, which has those of the same blocks first.
fn join(variables: &mut [Variable<'_>], others: &[Variable<'_>]) {
    for (variable, other) in variables.iter_mut().zip(others) {
        variable.value.or(&other.value);
    }
}

fn ends(block: &StmtBlock) -> bool {
    block.statements().iter().any(stops)
}

/// Whether a condition holds for names of special use only, or for some of them.
fn asks_for_special(condition: &Expr) -> bool {
    match condition {
        Expr::And(parts, _) | Expr::Or(parts, _) => parts.iter().any(asks_for_special),
        Expr::FnCall(call, _) if call.name == "!" => call.args.iter().any(asks_for_others),
        Expr::FnCall(call, _) if call.name == "==" => compares_special(call),
        _ => last_call(condition).is_some_and(|call| {
            let ending = call.args.first();
            call.name == "ends_with"
                && is_of_host(condition) != Some(false)
                && matches!(ending, Some(Expr::StringConstant(end, _))
                    if is_special_use(&format!("x{end}")))
        }),
    }
}

/// Whether names of special use, or some of them, are left where a condition does not hold.
fn asks_for_others(condition: &Expr) -> bool {
    match condition {
        Expr::And(parts, _) | Expr::Or(parts, _) => parts.iter().any(asks_for_others),
        Expr::FnCall(call, _) if call.name == "!" => call.args.iter().any(asks_for_special),
        Expr::FnCall(call, _) if call.name == "!=" => compares_special(call),
        _ => false,
    }
}

/// Whether a name of special use is held against what may be a host.
fn compares_special(call: &FnCallExpr) -> bool {
    match call.args.as_slice() {
        [one, other] => is_special(one, other) || is_special(other, one),
        _ => false,
    }
}

fn is_special(name: &Expr, subject: &Expr) -> bool {
    let Expr::StringConstant(name, _) = name else {
        return false;
    };
    is_special_use(name) && is_of_host(subject).unwrap_or_else(|| has_dot(name))
}

/// Whether `subject` is the name of a host, or made of one. None where the text does not tell, as of
/// a variable or what a function answers: a word without a dot is then taken for the name of a set or
/// the like.
fn is_of_host(subject: &Expr) -> Option<bool> {
    last_field(subject).map(|field| HOSTS.contains(&field))
}

/// The last field that a chain asks for.
fn last_field(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Dot(parts, ..) => last_field(&parts.rhs).or_else(|| last_field(&parts.lhs)),
        Expr::Index(parts, ..) => last_field(&parts.lhs),
        Expr::Coalesce(parts, _) => parts.iter().find_map(last_field),
        Expr::Property(property, _) => Some(property.2.as_str()),
        _ => None,
    }
}

fn has_dot(name: &str) -> bool {
    name.contains('.')
}

/// Whether what follows `statement` in its block runs for such names.
fn leaves_special(statement: &Stmt) -> bool {
    let Stmt::If(parts, _) = statement else {
        return false;
    };
    let passes_on = ends(&parts.body) && asks_for_others(&parts.expr);
    passes_on || parts.branch.statements().iter().any(leaves_special)
}

/// Names of special use in a script that fit, as the parser leaves them of the cases of a `switch`:
/// hashed. The parser hashes them here once more.
fn special_cases(text: &str, fits: fn(&str) -> bool) -> BTreeSet<u64> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    // What stands between two quotes, whichever of them opens a text: what is none is no case.
    let pieces = text.split(['"', '`']);
    let names: BTreeSet<&str> = pieces
        .filter(|piece| is_special_use(piece) && fits(piece) && piece.bytes().all(is_plain))
        .collect();
    let names: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let mut engine = Engine::new_raw();
    engine.set_optimization_level(OptimizationLevel::None);
    let switch = format!("switch 0 {{ {} => 0 }}", names.join(" |\n"));
    // Without a name it does not parse.
    let hashed = engine.compile(switch).ok();
    match hashed.as_ref().map(AST::statements) {
        Some([Stmt::Switch(parts, _)]) => parts.1.cases.keys().copied().collect(),
        _ => BTreeSet::new(),
    }
}
