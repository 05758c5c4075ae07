//! What is odd in a script and yet no fault: rules that nothing reaches, and open plans for names
//! that must not leave in clear. Only what can be decided from the text is told.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a tree has some fifty kinds of nodes, of which few matter here"
)]

mod leaks;

use std::{collections::BTreeSet, ops::RangeInclusive};

use rhai::{AST, ASTFlags, ASTNode, Expr, FnCallExpr, Position, Stmt};

use super::{lint::Fault, names};

/// What answers the same as long as one decision lasts, and changes nothing.
const PURE: &[&str] = &[
    "!",
    "!=",
    "%",
    "*",
    "+",
    "-",
    "/",
    "<",
    "<=",
    "==",
    ">",
    ">=",
    "after",
    "before",
    "contains",
    "ends_with",
    "first_set",
    "has",
    "hash",
    "peer",
    "relay",
    "set",
    "starts_with",
];
/// Earlier conditions that each is held against. Overflow: later ones rule nothing out; who writes
/// more of them asks `first_set`.
const MAX_COMPARED: usize = 64;

/// A condition that does not hold where it is asked about, and the line that took care of it.
type Ruled<'a> = (&'a Expr, usize);

struct Nose {
    warnings: Vec<Fault>,
    /// Variables of the function at hand that have one value while it runs.
    fixed: BTreeSet<String>,
}

/// One function of a script.
struct Function {
    name: String,
    parameters: Vec<String>,
    body: Vec<Stmt>,
}

/// Every oddity of `ast`, which must not be optimised, and which `text` was parsed into.
pub(super) fn find(ast: &AST, text: &str) -> Vec<Fault> {
    let functions: Vec<Function> = ast
        .iter_fn_def()
        .map(|function| {
            let range = function.body.start_position()..=function.body.end_position();
            Function {
                name: function.name.to_string(),
                parameters: function.params.iter().map(ToString::to_string).collect(),
                body: body_in(ast, &range),
            }
        })
        .collect();
    let mut nose = Nose {
        warnings: Vec::new(),
        fixed: BTreeSet::new(),
    };
    for function in &functions {
        nose.fixed = fixed_variables(function);
        nose.sequence(&function.body);
        walk(&function.body, &mut |node| {
            for block in blocks_of(node) {
                nose.sequence(block);
            }
        });
    }
    for place in leaks::find(&functions, text) {
        nose.warn(
            place,
            "an open plan for names that must not leave in clear: when it fails, the scripts are \
             asked again; end it with .closed()",
        );
    }
    nose.warnings.sort_by_key(|warning| warning.position);
    nose.warnings.dedup();
    nose.warnings
}

impl Nose {
    fn warn(&mut self, position: Position, message: impl Into<String>) {
        self.warnings.push(Fault {
            position,
            message: message.into(),
        });
    }

    /// Statements one after the other.
    fn sequence(&mut self, statements: &[Stmt]) {
        let mut ruled_out: Vec<Ruled<'_>> = Vec::new();
        let mut statements = statements.iter().peekable();
        while let Some(statement) = statements.next() {
            if let Stmt::If(..) = statement {
                self.chain(statement, &mut ruled_out);
            }
            if stops(statement)
                && let Some(next) = statements.peek()
            {
                let message = format!(
                    "nothing reaches this: line {} always ends before it; move it up, or remove it",
                    line(statement.position())
                );
                return self.warn(next.position(), message);
            }
        }
    }

    /// `if … else if …`. What leaves the block where it holds is ruled out behind it.
    fn chain<'a>(&mut self, statement: &'a Stmt, ruled_out: &mut Vec<Ruled<'a>>) {
        let mut known = ruled_out.clone();
        let mut all_stop = true;
        let mut next = Some(statement);
        while let Some(Stmt::If(parts, position)) = next {
            let condition = &parts.expr;
            if let Some((_, by)) = known
                .iter()
                .find(|(wider, _)| self.implies(condition, wider))
            {
                let message = format!(
                    "nothing reaches this rule: line {by} takes all that it asks for; put the \
                     narrower one first, or remove it"
                );
                self.warn(*position, message);
            }
            let ruled = (condition, line(*position));
            if known.len() < MAX_COMPARED {
                known.push(ruled);
            }
            all_stop &= parts.body.statements().iter().any(stops);
            if all_stop && ruled_out.len() < MAX_COMPARED {
                ruled_out.push(ruled);
            }
            next = match parts.branch.statements() {
                [only @ Stmt::If(..)] => Some(only),
                _ => None,
            };
        }
    }

    /// Whether `wider` holds wherever `narrow` does.
    fn implies(&self, narrow: &Expr, wider: &Expr) -> bool {
        match (narrow, wider) {
            (Expr::Or(parts, _), _) => parts.iter().all(|part| self.implies(part, wider)),
            (_, Expr::And(parts, _)) => parts.iter().all(|part| self.implies(narrow, part)),
            (Expr::And(parts, _), _) if parts.iter().any(|part| self.implies(part, wider)) => true,
            (_, Expr::Or(parts, _)) => parts.iter().any(|part| self.implies(narrow, part)),
            _ => match (self.text(narrow), self.text(wider)) {
                (Some(one), Some(other)) if one == other => true,
                _ => self.is_below(narrow, wider),
            },
        }
    }

    /// Whether both ask how the same text ends, and the first asks for more of it.
    fn is_below(&self, narrow: &Expr, wider: &Expr) -> bool {
        let Some((of, end)) = self.ending(wider) else {
            return false;
        };
        let narrower = self.ending(narrow).or_else(|| self.equality(narrow));
        narrower.is_some_and(|(subject, text)| subject == of && text.ends_with(end))
    }

    /// `subject.ends_with("text")`.
    fn ending<'e>(&self, expr: &'e Expr) -> Option<(String, &'e str)> {
        let whole = self.text(expr)?;
        let call = last_call(expr).filter(|call| call.name == "ends_with")?;
        let [Expr::StringConstant(text, _)] = call.args.as_slice() else {
            return None;
        };
        let subject = whole.rsplit_once(".ends_with(")?.0;
        Some((subject.to_owned(), text))
    }

    /// `subject == "text"`.
    fn equality<'e>(&self, expr: &'e Expr) -> Option<(String, &'e str)> {
        let Expr::FnCall(call, _) = expr else {
            return None;
        };
        match call.args.as_slice() {
            [subject, Expr::StringConstant(text, _)] if call.name == "==" => {
                Some((self.text(subject)?, text))
            }
            _ => None,
        }
    }

    /// `expr` as a text that is the same for the same question; none when it may answer otherwise
    /// the next time.
    fn text(&self, expr: &Expr) -> Option<String> {
        let call = |call: &FnCallExpr| {
            let pure = PURE.contains(&call.name.as_str());
            let arguments: Option<Vec<_>> = call.args.iter().map(|arg| self.text(arg)).collect();
            pure.then_some(())?;
            Some(format!("{}({})", call.name, arguments?.join(", ")))
        };
        match expr {
            Expr::Variable(variable, ..) => {
                let is_fixed = !variable.2.is_empty() || self.fixed.contains(variable.1.as_str());
                is_fixed.then(|| variable.1.to_string())
            }
            Expr::Property(property, _) => Some(property.2.to_string()),
            Expr::Dot(parts, flags, _) => {
                let dot = match flags.intersects(ASTFlags::NEGATED) {
                    true => "?.",
                    false => ".",
                };
                let (of, what) = (self.text(&parts.lhs)?, self.text(&parts.rhs)?);
                Some(format!("{of}{dot}{what}"))
            }
            Expr::FnCall(parts, _) | Expr::MethodCall(parts, _) => call(parts),
            Expr::Array(items, _) => {
                let items: Option<Vec<_>> = items.iter().map(|item| self.text(item)).collect();
                Some(format!("[{}]", items?.join(", ")))
            }
            _ if expr.is_constant() => Some(format!("{expr:?}").split(" @").next()?.to_owned()),
            _ => None,
        }
    }
}

/// Variables that are defined once in a function, parameters among them, and never written.
fn fixed_variables(function: &Function) -> BTreeSet<String> {
    let mut fixed: BTreeSet<String> = function.parameters.iter().cloned().collect();
    let mut others = BTreeSet::new();
    // By reference: methods and closures may write there.
    let mut lent = BTreeSet::new();
    walk(&function.body, &mut |node| match node {
        ASTNode::Stmt(Stmt::Var(variable, ..)) => {
            let name = variable.0.name.to_string();
            if !fixed.insert(name.clone()) {
                others.insert(name);
            }
        }
        ASTNode::Stmt(Stmt::For(parts, _)) => {
            others.insert(parts.0.name.to_string());
        }
        ASTNode::Stmt(Stmt::Assignment(parts)) => {
            others.extend(first_variable(&parts.1.lhs).map(str::to_owned));
        }
        ASTNode::Stmt(Stmt::Share(used)) => {
            lent.extend(used.iter().map(|(variable, _)| variable.name.to_string()));
        }
        ASTNode::Expr(Expr::Dot(parts, ..) | Expr::Index(parts, ..)) if writes(&parts.rhs) => {
            lent.extend(first_variable(&parts.lhs).map(str::to_owned));
        }
        ASTNode::Expr(Expr::FnCall(call, _)) | ASTNode::Stmt(Stmt::FnCall(call, _))
            if names::is_writer(&call.name) =>
        {
            let first = call.args.first().and_then(first_variable);
            lent.extend(first.map(str::to_owned));
        }
        _ => {}
    });
    // A hook's argument is the host's, which hands out copies of what it holds.
    if names::is_hook(&function.name) {
        lent.retain(|name| !function.parameters.contains(name));
    }
    fixed.retain(|name| !others.contains(name) && !lent.contains(name));
    fixed
}

/// Whether a method among what follows the first dot changes what it is called on.
fn writes(rest: &Expr) -> bool {
    match rest {
        Expr::MethodCall(call, _) => names::is_writer(&call.name),
        Expr::Dot(parts, ..) | Expr::Index(parts, ..) => writes(&parts.lhs) || writes(&parts.rhs),
        _ => false,
    }
}

fn first_variable(expr: &Expr) -> Option<&str> {
    match expr {
        Expr::Variable(variable, ..) => Some(variable.1.as_str()),
        Expr::Dot(parts, ..) | Expr::Index(parts, ..) => first_variable(&parts.lhs),
        _ => None,
    }
}

/// The statements of a function. Rhai shows them on a walk only, where they stand below nothing.
fn body_in(ast: &AST, range: &RangeInclusive<Position>) -> Vec<Stmt> {
    let mut body = Vec::new();
    ast.walk(&mut |path| {
        if let [ASTNode::Stmt(statement)] = path
            && range.contains(&statement.position())
        {
            body.push((*statement).clone());
        }
        true
    });
    body
}

/// Calls `look` with every node of `statements` and below.
fn walk(statements: &[Stmt], look: &mut dyn FnMut(&ASTNode<'_>)) {
    let mut path = Vec::new();
    for statement in statements {
        statement.walk(&mut path, &mut |path| {
            if let Some(node) = path.last() {
                look(node);
            }
            true
        });
    }
}

/// The blocks right below a node.
fn blocks_of<'a>(node: &ASTNode<'a>) -> Vec<&'a [Stmt]> {
    match *node {
        ASTNode::Stmt(Stmt::If(parts, _) | Stmt::While(parts, _) | Stmt::TryCatch(parts, _)) => {
            vec![parts.body.statements(), parts.branch.statements()]
        }
        ASTNode::Stmt(Stmt::Do(parts, ..)) => vec![parts.body.statements()],
        ASTNode::Stmt(Stmt::For(parts, _)) => vec![parts.2.body.statements()],
        ASTNode::Stmt(Stmt::Block(block)) => vec![block.statements()],
        ASTNode::Expr(Expr::Stmt(block)) => vec![block.statements()],
        _ => Vec::new(),
    }
}

/// Whether nothing behind `statement` in its block runs.
fn stops(statement: &Stmt) -> bool {
    let any = |block: &[Stmt]| block.iter().any(stops);
    match statement {
        Stmt::Return(..) | Stmt::BreakLoop(..) => true,
        Stmt::If(parts, _) => any(parts.body.statements()) && any(parts.branch.statements()),
        Stmt::Block(block) => any(block.statements()),
        _ => false,
    }
}

/// The call that a chain ends with.
fn last_call(expr: &Expr) -> Option<&FnCallExpr> {
    match expr {
        Expr::Dot(parts, ..) => last_call(&parts.rhs),
        Expr::MethodCall(call, _) => Some(call),
        _ => None,
    }
}

fn line(position: Position) -> usize {
    position.line().unwrap_or(0)
}
