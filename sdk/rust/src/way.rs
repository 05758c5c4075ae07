//! How something travels: the same for messages, requests by HTTP and connections.

use crate::Identity;

/// How a message travels: what the rules read, and what keeps flows apart.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Way {
    /// As whom.
    pub sender: Identity,
    /// `c.role`.
    pub role: String,
    /// `c.label`.
    pub label: String,
    /// Messages with different keys share no flow.
    pub isolation: String,
}

/// Lets a type with the field `way` say how it travels; `isolated` is what its `isolate` does.
macro_rules! travels {
    ($type:ty, $isolated:literal) => {
        impl $type {
            /// What the rules read as `c.role`.
            #[must_use]
            pub fn role(mut self, role: &str) -> Self {
                role.clone_into(&mut self.way.role);
                self
            }

            /// What the rules read as `c.label`.
            #[must_use]
            pub fn label(mut self, label: &str) -> Self {
                label.clone_into(&mut self.way.label);
                self
            }

            #[doc = $isolated]
            #[must_use]
            pub fn isolate(mut self, key: &str) -> Self {
                key.clone_into(&mut self.way.isolation);
                self
            }
        }
    };
}

pub(crate) use travels;
