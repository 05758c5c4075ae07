//! A target's answer on its way to a program that may leave before the target says more.

use std::{
    error::Error,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use hyper::body::{Body, Frame, Incoming, SizeHint};

use crate::flow::{self, Ends, Refusal};

/// The body, broken off when the program has left: a target that is silent would not show it.
pub(in crate::entrance) struct Relayed {
    body: Incoming,
    left: BoxFuture<'static, ()>,
}

impl Relayed {
    pub(super) fn new(body: Incoming, ends: Ends) -> Self {
        let left = flow::left(ends).boxed();
        Self { body, left }
    }
}

impl Body for Relayed {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
            Poll::Pending => {
                let left = self.left.poll_unpin(cx);
                left.map(|()| Some(Err(Refusal::Gone.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
