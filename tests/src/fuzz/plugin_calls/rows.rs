//! Rows of `state`, `secret` and `scratch`, and timers.

use std::sync::Arc;

use wormholes_host::trial::words::{scratch, secret, state, state::Range, timers};

use super::{
    super::input::Input,
    Live,
    model::{Of, Table, Timer, listed},
    words::Words,
};

const MAX_KEY_BYTES: usize = 512;
const MAX_VALUE_BYTES: usize = 1 << 20;
const MAX_PAYLOAD_BYTES: usize = 4 << 10;
const MAX_NAME_BYTES: usize = 128;
/// What the host's part of a key counts for in a scan.
const PREFIX_BYTES: usize = 10;
/// Tables that have more are not read after each event.
const MAX_SWEPT_BYTES: usize = 64 << 10;

/// Calls the interface that the table has.
macro_rules! of {
    ($of:expr, $function:ident($($argument:expr),+)) => {
        match $of {
            Of::State => state::Host::$function($($argument),+),
            Of::Secret => secret::Host::$function($($argument),+),
            Of::Scratch => scratch::Host::$function($($argument),+),
        }
        .unwrap()
    };
}

impl Live {
    pub(super) fn call_rows(&mut self, choice: u8, input: &mut Input<'_>) {
        let of = match choice % 8 {
            0..4 => Of::State,
            4 | 5 => Of::Scratch,
            _ => Of::Secret,
        };
        match choice / 8 {
            0 => {
                let key = input.key();
                let row = of!(of, get(self.imports(), key.clone()));
                let known = self.model.table(of).get(&key);
                assert!(row.as_deref() == known.map(|known| &**known));
            }
            1 => self.set(of, input.key(), input.many()),
            2 => self.delete(of, input.key()),
            _ => {
                let range = Range {
                    prefix: input.perhaps(Words::key).unwrap_or_default(),
                    after: input.perhaps(Words::key),
                    backwards: input.flag(),
                    limit: u32::try_from(input.number()).unwrap_or(u32::MAX),
                };
                self.scan(of, range);
            }
        }
    }

    fn set(&mut self, of: Of, key: Vec<u8>, value: Vec<u8>) {
        let is_key = (1..=MAX_KEY_BYTES).contains(&key.len());
        let is_valid = is_key && value.len() <= MAX_VALUE_BYTES;
        match of!(of, set(self.imports(), key.clone(), value.clone())) {
            Ok(()) => {
                assert!(is_valid && !self.is_query);
                self.model.table(of).insert(key, Arc::from(value));
            }
            Err(error) => self.refused(&error, is_valid),
        }
    }

    fn delete(&mut self, of: Of, key: Vec<u8>) {
        let is_valid = (1..=MAX_KEY_BYTES).contains(&key.len());
        match of!(of, delete(self.imports(), key.clone())) {
            Ok(()) => {
                assert!(is_valid && !self.is_query);
                self.model.table(of).remove(&key);
            }
            Err(error) => self.refused(&error, is_valid),
        }
    }

    /// Lists what is to be listed; the last key that was.
    fn scan(&mut self, of: Of, range: Range) -> Option<Vec<u8>> {
        let about = if of == Of::Scratch { 0 } else { PREFIX_BYTES };
        let known = listed(self.model.table(of), &range, about);
        let rows = of!(of, scan(self.imports(), range));
        assert!(rows == known, "{} rows, not {}", rows.len(), known.len());
        rows.into_iter().next_back().map(|(key, _)| key)
    }

    /// Reads all that is there, some rows at a time, in both directions.
    pub(super) fn sweep(&mut self) {
        for of in [Of::State, Of::Secret, Of::Scratch] {
            let bytes = |table: &Table| -> usize {
                table.iter().map(|(key, row)| key.len() + row.len()).sum()
            };
            if bytes(self.model.table(of)) > MAX_SWEPT_BYTES {
                continue;
            }
            for backwards in [false, true] {
                let mut after = None;
                loop {
                    let range = Range {
                        prefix: Vec::new(),
                        after: after.clone(),
                        backwards,
                        limit: 3,
                    };
                    match self.scan(of, range) {
                        Some(last) => after = Some(last),
                        None => break,
                    }
                }
            }
        }
        let names: Vec<_> = self.model.kept.timers.keys().cloned().collect();
        for name in names {
            self.due(name);
        }
        self.sweep_blobs();
    }

    pub(super) fn call_timers(&mut self, choice: u8, input: &mut Input<'_>) {
        let name = input.name();
        let is_name = (1..=MAX_NAME_BYTES).contains(&name.len());
        match choice % 4 {
            0 | 1 => {
                let (at_ms, durable, payload) = (input.number(), input.flag(), input.many());
                let is_valid = is_name && payload.len() <= MAX_PAYLOAD_BYTES;
                let set = timers::Host::set(self.imports(), name.clone(), at_ms, payload, durable);
                match set.unwrap() {
                    Ok(()) => {
                        assert!(is_valid && !self.is_query);
                        let due_ms = at_ms.max(self.now_ms.saturating_add(1));
                        let timer = Timer { due_ms, durable };
                        self.model.kept.timers.insert(name, timer);
                    }
                    Err(error) => self.refused(&error, is_valid),
                }
            }
            2 => match timers::Host::cancel(self.imports(), name.clone()).unwrap() {
                Ok(()) => {
                    assert!(is_name && !self.is_query);
                    self.model.kept.timers.remove(&name);
                }
                Err(error) => self.refused(&error, is_name),
            },
            _ => self.due(name),
        }
    }

    fn due(&mut self, name: String) {
        let due = timers::Host::due(self.imports(), name.clone()).unwrap();
        let known = self.model.kept.timers.get(&name);
        assert_eq!(due, known.map(|timer| timer.due_ms));
    }
}
