//! Rule scripts: Rhai in, plan out. Pure and synchronous; the daemon does what a plan says.

mod plan;
mod verdict;
mod view;

pub use plan::{Jitter, Marks, Plan, Step, Tunnel, TunnelKind};
pub use verdict::{AddressDisclosure, Allowance, Verdict};
pub use view::{Conn, ExitRequest, NodeView, RelayRequest, Roles, RuleEvent, World};
