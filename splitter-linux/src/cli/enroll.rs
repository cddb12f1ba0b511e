//! `tidemark-splitter enroll`.

use anyhow::{Context as _, Result};
use tidemark_proto::token::Token;

use super::status::line;
use crate::enrol;
use crate::state::StateDir;

pub(super) fn enroll(state: &StateDir, appliance: &str, token: &str) -> Result<()> {
    let token: Token = token.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the network run time")?;
    let identity = runtime.block_on(enrol::enrol(state, appliance, &token))?;
    line(&format!(
        "enrolled as '{}' at {}; next: tidemark-splitter run --state {}",
        identity.vm_name,
        identity.appliance,
        state.root().display()
    ))
}
