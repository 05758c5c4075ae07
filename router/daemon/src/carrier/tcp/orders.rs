//! The first connection of a link: what its two ends have each other do.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    sync::mpsc,
    time::{Instant, MissedTickBehavior, timeout},
};
use wormholes_proto::tcp::{ORDER_BYTES, Order, Purpose};

use super::{
    link::{Shared, micros},
    socket::TlsSocket,
};
use crate::carrier::{CloseCode, IDLE_TIMEOUT, KEEP_ALIVE, LinkError};

/// Connections that a caller makes for one link at most, whatever the called says.
const MAX_PLACES: usize = 65_536;
/// Who does not take leave by then is left alone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Ends a link with the task that keeps it, however that ends.
struct Ending(Arc<Shared>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(LinkError::Lost("given up".to_owned()));
    }
}

/// Gives and takes orders until the link ends.
pub(super) async fn keep(shared: Arc<Shared>, control: TlsSocket, given: mpsc::Receiver<Order>) {
    let _ending = Ending(Arc::clone(&shared));
    let why = tokio::select! {
        why = converse(&shared, &control, given) => why,
        () = shared.left() => {
            let leave = Order::Close(shared.leave_code() as u64).encode();
            // The other end hears why before its flows break.
            let _ = timeout(LEAVE_TIMEOUT, async {
                if control.write(&leave, &mut []).await.is_ok() {
                    while let Ok(Some(_)) = control.read().await {}
                }
            })
            .await;
            LinkError::Lost("closed here".to_owned())
        }
    };
    shared.end(why);
    control.shut();
}

async fn converse(
    shared: &Arc<Shared>,
    control: &TlsSocket,
    mut given: mpsc::Receiver<Order>,
) -> LinkError {
    let mut tick = tokio::time::interval(KEEP_ALIVE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut pending, mut heard) = (BytesMut::new(), Instant::now());
    loop {
        let said = tokio::select! {
            read = control.read() => match read {
                Ok(Some(bytes)) => {
                    heard = Instant::now();
                    shared.arrived.fetch_add(1, Relaxed);
                    pending.extend_from_slice(&bytes);
                    match obey(shared, &mut pending) {
                        Ok(said) => said,
                        Err(why) => return why,
                    }
                }
                Ok(None) => return LinkError::Lost("closed by the node".to_owned()),
                Err(error) => return LinkError::Lost(error.to_string()),
            },
            order = given.recv() => order.map(|order| order.encode().to_vec()).unwrap_or_default(),
            _ = tick.tick() => {
                if heard.elapsed() > IDLE_TIMEOUT {
                    return LinkError::Lost("timed out".to_owned());
                }
                shared.forget_idle();
                shared.ping().encode().to_vec()
            }
        };
        match timeout(IDLE_TIMEOUT, control.write(&said, &mut [])).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return LinkError::Lost(error.to_string()),
            Err(_) => return LinkError::Lost("timed out".to_owned()),
        }
    }
}

/// Does what the whole orders in `pending` want; what is to be answered.
fn obey(shared: &Arc<Shared>, pending: &mut BytesMut) -> Result<Vec<u8>, LinkError> {
    let breach = |what: String| LinkError::Lost(format!("breach by the node: {what}"));
    let mut answer = Vec::new();
    while pending.len() >= ORDER_BYTES {
        let order = Order::decode(&pending.split_to(ORDER_BYTES));
        match order.map_err(|error| breach(error.to_string()))? {
            Order::Ping(number) => answer.extend_from_slice(&Order::Pong(number).encode()),
            Order::Pong(number) => {
                let now = micros(shared.made.elapsed());
                shared.measured(Duration::from_micros(now.saturating_sub(number)));
                shared.pongs.fetch_add(1, Relaxed);
            }
            Order::Want(_) | Order::Places(_) if !shared.can_call() => {
                return Err(breach("the caller gives an order of the called".to_owned()));
            }
            Order::Want(count) => add_for_the_called(shared, count),
            Order::Places(count) => {
                let max = usize::try_from(count).unwrap_or(usize::MAX);
                shared.set_places(max.min(MAX_PLACES));
            }
            Order::Close(code) => return Err(LinkError::closed_with(code)),
        }
    }
    Ok(answer)
}

/// As many as may be made at once; for the rest the called asks again.
fn add_for_the_called(shared: &Arc<Shared>, count: u64) {
    for _ in 0..count {
        let Some(place) = shared.place_for_the_called() else {
            return;
        };
        let adder = Arc::clone(shared);
        shared.spawn(async move {
            let added = tokio::select! {
                added = adder.add(Purpose::Backward) => added,
                () = adder.left() => return,
            };
            drop(place);
            match added {
                Ok(connection) => adder.rest(connection),
                Err(error) => tracing::debug!(%error, "no connection for the called"),
            }
        });
    }
}

impl Shared {
    fn leave_code(&self) -> CloseCode {
        self.leave.get().copied().unwrap_or(CloseCode::Done)
    }

    fn measured(&self, rtt: Duration) {
        let (old, new) = (self.rtt_us.load(Relaxed), micros(rtt));
        // RFC 6298, section 2.
        let smooth = if old == 0 { new } else { (old * 7 + new) / 8 };
        self.rtt_us.store(smooth, Relaxed);
    }
}
