//! One connection to the router, as far as SAM goes.

use std::{net::SocketAddr, time::Duration};

use bytes::BytesMut;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use wormholes_proto::sam::{SamClient, SamRequest, SamState};

use super::{I2pError, Stream};
use crate::{dial, pipe};

/// A router is near; one that has not said hello by then is dead, and the next step has its turn.
const HELLO_TIME: Duration = Duration::from_secs(5);

/// A connection, and what was said on it.
#[derive(Debug)]
pub(super) struct Talk {
    connection: TcpStream,
    client: SamClient,
    input: BytesMut,
    /// Came with the greeting.
    ready: Option<SamState>,
}

impl Talk {
    /// Connects, and says what is wanted as soon as the router has said hello.
    ///
    /// # Errors
    /// [`I2pError`], within [`HELLO_TIME`].
    pub(super) async fn begin(router: SocketAddr, request: SamRequest) -> Result<Self, I2pError> {
        let greeted = timeout(HELLO_TIME, Self::greet(router, request)).await;
        greeted.unwrap_or(Err(I2pError::Silent(HELLO_TIME)))
    }

    async fn greet(router: SocketAddr, request: SamRequest) -> Result<Self, I2pError> {
        let connection = dial::connect(&[router], HELLO_TIME).await;
        let connection = connection.map_err(I2pError::NotReached)?;
        pipe::set_options(&connection);
        let (client, hello) = SamClient::new(request);
        let mut talk = Self {
            connection,
            client,
            input: BytesMut::new(),
            ready: None,
        };
        talk.send(hello).await?;
        while !talk.client.is_greeted() {
            talk.read().await?;
            let state = talk.step().await?;
            talk.ready = Some(state).filter(|state| *state != SamState::NeedMore);
        }
        Ok(talk)
    }

    /// The answer to what was asked.
    ///
    /// # Errors
    /// [`I2pError`]. A router may take its time.
    pub(super) async fn answer(&mut self) -> Result<SamState, I2pError> {
        if let Some(state) = self.ready.take() {
            return Ok(state);
        }
        loop {
            self.read().await?;
            let state = self.step().await?;
            if state != SamState::NeedMore {
                return Ok(state);
            }
        }
    }

    /// What comes later, unasked: a caller; of a session nothing but its end.
    ///
    /// # Errors
    /// [`I2pError`], when the router ends it.
    pub(super) async fn later(&mut self) -> Result<SamState, I2pError> {
        loop {
            let state = self.step().await?;
            if !matches!(state, SamState::NeedMore | SamState::Waiting) {
                return Ok(state);
            }
            self.read().await?;
        }
    }

    /// The stream that follows.
    pub(super) fn into_stream(self) -> Stream {
        Stream {
            connection: self.connection,
            ahead: self.input.freeze(),
        }
    }

    async fn step(&mut self) -> Result<SamState, I2pError> {
        let step = self.client.handle_input(&self.input);
        let _ = self.input.split_to(step.consumed);
        if !step.send.is_empty() {
            self.send(&step.send).await?;
        }
        match step.state {
            SamState::Failed(error) => Err(error.into()),
            state @ (SamState::NeedMore
            | SamState::Waiting
            | SamState::Greeted
            | SamState::Found
            | SamState::Session(_)
            | SamState::Connected
            | SamState::Called(_)) => Ok(state),
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), I2pError> {
        let sent = self.connection.write_all(bytes).await;
        sent.map_err(|_| I2pError::HungUp)
    }

    async fn read(&mut self) -> Result<(), I2pError> {
        match self.connection.read_buf(&mut self.input).await {
            Ok(0) | Err(_) => Err(I2pError::HungUp),
            Ok(_) => Ok(()),
        }
    }
}
