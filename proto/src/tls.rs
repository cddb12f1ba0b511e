//! The name that stands in every server certificate of an appliance.

/// Clients verify this name, not the address they dialled. The appliance's own authority signs server certificates for
/// that one appliance only, so an address would add nothing; without it the appliance can be reached through
/// address translation, tunnels and new addresses.
pub const SERVER_NAME: &str = "appliance.tidemark.internal";
