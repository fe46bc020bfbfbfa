//! Routes whose cluster depends on the request (`weighted_clusters`, `cluster_header`).

use std::{collections::HashMap, sync::Arc};

use http::{HeaderName, request};

use super::{RouteEntry, RouteMatch};

/// A route that stands for several, one for each cluster.
#[derive(Debug)]
pub struct Split {
    /// Which requests it is for.
    pub matches: RouteMatch,
    /// Which of the routes one of them takes.
    pub choice: Choice,
}

/// How a request chooses one of several routes.
#[derive(Debug)]
pub enum Choice {
    /// By chance, or by a number in a header.
    Weighted {
        /// The routes, each with its weight.
        among: Vec<(u32, Box<Choice>)>,
        /// The sum of the weights; not 0.
        total: u64,
        /// The header with the number.
        header: Option<HeaderName>,
    },
    /// By the name of the cluster in a header.
    Named {
        /// The header.
        header: HeaderName,
        /// The routes by cluster.
        by_name: HashMap<Arc<str>, Arc<RouteEntry>>,
        /// The one for all other names.
        unknown: Arc<RouteEntry>,
    },
    /// There is only one.
    One(Arc<RouteEntry>),
}

impl Choice {
    /// The route of a request with this number; always the same for the same number.
    pub(crate) fn pick(&self, parts: &request::Parts, id: u64) -> Option<&Arc<RouteEntry>> {
        match self {
            Self::One(entry) => Some(entry),
            Self::Named {
                header,
                by_name,
                unknown,
            } => {
                let name = parts.headers.get(header).and_then(|v| v.to_str().ok());
                let named = name.and_then(|name| by_name.get(name));
                Some(named.unwrap_or(unknown))
            }
            Self::Weighted {
                among,
                total,
                header,
            } => {
                let given = header.as_ref().and_then(|name| {
                    let value = parts.headers.get(name)?;
                    value.to_str().ok()?.trim().parse::<u64>().ok()
                });
                let mut left = given.unwrap_or_else(|| mixed(id)).checked_rem(*total)?;
                for (weight, choice) in among {
                    match left.checked_sub(u64::from(*weight)) {
                        Some(rest) => left = rest,
                        None => return choice.pick(parts, id),
                    }
                }
                None
            }
        }
    }

    /// All routes that a request may take.
    pub(crate) fn entries(&self) -> Vec<&Arc<RouteEntry>> {
        match self {
            Self::One(entry) => vec![entry],
            Self::Named {
                by_name, unknown, ..
            } => by_name.values().chain([unknown]).collect(),
            Self::Weighted { among, .. } => {
                let among = among.iter();
                among.flat_map(|(_, choice)| choice.entries()).collect()
            }
        }
    }
}

/// A number that looks random, from one that counts requests (the finalizer of SplitMix64).
pub(crate) fn mixed(id: u64) -> u64 {
    let mut z = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use attache_filter::Route;
    use http::Request;

    use super::*;
    use crate::route::{Action, Forward, PathMatch};

    fn entry(name: &str) -> Arc<RouteEntry> {
        let route = Route {
            name: name.to_owned(),
            ..Route::default()
        };
        Arc::new(RouteEntry::new(
            RouteMatch::path(PathMatch::Prefix("/".to_owned())),
            Action::Forward(Forward::to(0)),
            Arc::new(route),
        ))
    }

    fn weighted(header: Option<&'static str>) -> Choice {
        let one = |name| Box::new(Choice::One(entry(name)));
        Choice::Weighted {
            among: vec![(90, one("most")), (0, one("none")), (10, one("few"))],
            total: 100,
            header: header.map(HeaderName::from_static),
        }
    }

    fn parts(header: &str, value: &str) -> request::Parts {
        let request = Request::builder().header(header, value);
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn shares_follow_the_weights_and_one_request_keeps_its_cluster() {
        let choice = weighted(None);
        let parts = parts("a", "b");
        let picked = |id| &choice.pick(&parts, id).unwrap().route.name;
        let few = (0..10_000).filter(|id| picked(*id) == "few").count();
        assert!((800..1200).contains(&few), "{few}");
        assert!((0..10_000).all(|id| picked(id) != "none"));
        assert!((0..1000).all(|id| picked(id) == picked(id)));
    }

    #[test]
    fn a_number_in_a_header_decides() {
        let choice = weighted(Some("x-draw"));
        for (value, wanted) in [("0", "most"), ("89", "most"), ("90", "few"), ("199", "few")] {
            let picked = choice.pick(&parts("x-draw", value), 7).unwrap();
            assert_eq!(picked.route.name, wanted, "{value}");
        }
        let random = weighted(None);
        for value in ["", "-1", "x", "99999999999999999999"] {
            let parts = parts("x-draw", value);
            let picked = choice.pick(&parts, 7).unwrap();
            let other = random.pick(&parts, 7).unwrap();
            assert_eq!(picked.route.name, other.route.name, "{value}");
        }
    }

    #[test]
    fn a_header_names_the_cluster() {
        let choice = Choice::Named {
            header: HeaderName::from_static("x-cluster"),
            by_name: HashMap::from([("a".into(), entry("a")), ("b".into(), entry("b"))]),
            unknown: entry("unknown"),
        };
        for (name, value, wanted) in [
            ("x-cluster", "a", "a"),
            ("x-cluster", "b", "b"),
            ("x-cluster", "c", "unknown"),
            ("x-other", "a", "unknown"),
        ] {
            let picked = choice.pick(&parts(name, value), 0).unwrap();
            assert_eq!(picked.route.name, wanted);
        }
    }
}
