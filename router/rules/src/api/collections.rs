//! Functions of Rhai's library that are replaced, because the library's own are not bounded by
//! the limits of a script or may panic.

use std::cmp::Ordering;

use rhai::{Array, Dynamic, Engine, FnPtr, ImmutableString, NativeCallContext};

use crate::script::call::ScriptResult;

pub(crate) fn register(engine: &mut Engine) {
    engine
        .register_fn(
            "sort",
            |context: NativeCallContext, items: &mut Array, order: FnPtr| {
                sort(&context, items, &order)
            },
        )
        // One of them takes seconds and gigabytes on a string of some 60,000 characters.
        .register_fn("replace", |_: &mut ImmutableString, _: &str, _: &str| {
            refuse()
        })
        .register_fn("replace", |_: &mut ImmutableString, _: &str, _: char| {
            refuse()
        })
        .register_fn("replace", |_: &mut ImmutableString, _: char, _: &str| {
            refuse()
        })
        .register_fn("replace", |_: &mut ImmutableString, _: char, _: char| {
            refuse()
        });
}

fn refuse() -> ScriptResult<()> {
    Err("replace() is not available in rule scripts".into())
}

/// Merge sort, from below. The library's sort panics when `order` contradicts itself, and goes on
/// comparing after an error; this one ends, with some order, and at the first error.
fn sort(context: &NativeCallContext, items: &mut Array, order: &FnPtr) -> ScriptResult<()> {
    let mut runs: Vec<Array> = std::mem::take(items)
        .into_iter()
        .map(|item| vec![item])
        .collect();
    while runs.len() > 1 {
        let mut merged = Vec::with_capacity(runs.len().div_ceil(2));
        let mut rest = runs.into_iter();
        while let Some(left) = rest.next() {
            match rest.next() {
                Some(right) => merged.push(merge(context, left, right, order)?),
                None => merged.push(left),
            }
        }
        runs = merged;
    }
    *items = runs.pop().unwrap_or_default();
    Ok(())
}

fn merge(
    context: &NativeCallContext,
    left: Array,
    right: Array,
    order: &FnPtr,
) -> ScriptResult<Array> {
    let mut merged = Array::with_capacity(left.len() + right.len());
    let mut left = left.into_iter().peekable();
    let mut right = right.into_iter().peekable();
    while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
        let take_left = compare(context, order, a, b)? != Ordering::Greater;
        merged.extend(if take_left { left.next() } else { right.next() });
    }
    merged.extend(left);
    merged.extend(right);
    Ok(merged)
}

/// A comparer answers with a number below, at or above 0, or with whether the first goes first.
fn compare(
    context: &NativeCallContext,
    order: &FnPtr,
    a: &Dynamic,
    b: &Dynamic,
) -> ScriptResult<Ordering> {
    let answer: Dynamic = order.call_within_context(context, (a.clone(), b.clone()))?;
    if let Ok(number) = answer.as_int() {
        return Ok(number.cmp(&0));
    }
    if let Ok(number) = answer.as_float() {
        return Ok(number.total_cmp(&0.0));
    }
    match answer.as_bool() {
        Ok(true) => Ok(Ordering::Less),
        Ok(false) => Ok(Ordering::Greater),
        Err(found) => Err(format!("sort() wants a number or true or false, not {found}").into()),
    }
}
