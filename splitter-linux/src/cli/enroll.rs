//! `tidemark-splitter enroll`.

use anyhow::{Context as _, Result};
use tidemark_proto::token::Token;

use super::status::line;
use crate::state::StateDir;
use crate::{enrol, service};

pub(super) fn enroll(state: &StateDir, appliance: &str, token: &str, start: bool) -> Result<()> {
    let token: Token = token.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the network run time")?;
    let identity = runtime.block_on(enrol::enrol(state, appliance, &token))?;
    let enrolled = format!("enrolled as '{}' at {}", identity.vm_name, identity.appliance);
    if start && service::serves(state) {
        line(&enrolled)?;
        service::start()?;
        return line(&format!("{} is running; next: tidemark-splitter protect DISK --wait", service::UNIT));
    }
    line(&format!("{enrolled}; next: {}", service::start_command(state)))
}
