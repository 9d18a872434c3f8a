//! All kinds that a topology may name.

use sluice_topology::Registry;

/// Operators, services and tables, each list sorted by name.
pub(crate) fn registry() -> Registry {
    let mut kinds = sluice_operators::KINDS.to_vec();
    kinds.extend([&sluice_api::KIND, &sluice_gateway::KIND, &sluice_jobmanager::KIND]);
    kinds.sort_by_key(|kind| kind.name);
    Registry { kinds, tables: sluice_operators::TABLES.to_vec() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_kind_breaks_the_rules() {
        let faults = sluice_topology::reference::registry_faults(&super::registry());
        assert!(faults.is_empty(), "{faults:#?}");
    }
}
