//! Handlers run over a transaction, as in an instance of their own.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
};

use wormholes_plugin::{Context, Error, Migration, Plugin, Reason, Reply, Result, host};

use crate::{
    check::said,
    event::Fault,
    transaction::{Shared, Transaction},
};

/// Runs a handler over a transaction.
pub(super) fn run<T>(
    transaction: &Rc<RefCell<Transaction>>,
    handler: impl FnOnce() -> Result<T>,
) -> std::result::Result<T, Fault> {
    let host = Box::new(Shared(Rc::clone(transaction)));
    let told = catch_unwind(AssertUnwindSafe(|| host::enter(host, handler).0));
    told.map_err(|panic| Fault::Broke(said(&*panic)))?
        .map_err(Fault::Refused)
}

/// Both handlers of another version in one transaction; `migrate` in as many steps as it wants, each
/// with new limits and new memory.
pub(super) fn migrate<P: Plugin>(
    transaction: &Rc<RefCell<Transaction>>,
    cx: &mut Context,
    from: u32,
) -> std::result::Result<Option<Reply>, Fault> {
    transaction.borrow_mut().runs_steps = true;
    loop {
        let how_far = run(transaction, || P::default().migrate(cx, from))?;
        let wrote_rows = transaction.borrow_mut().end_step();
        match how_far {
            Migration::Done => break,
            Migration::Again if wrote_rows => {}
            Migration::Again => {
                let idle = Error::failed("`migrate` wants to go on, and wrote nothing");
                return Err(Fault::Refused(idle));
            }
        }
    }
    transaction.borrow_mut().runs_steps = false;
    run(transaction, || P::default().init(cx, Reason::Updated))?;
    Ok(None)
}
