//! What went wrong with a request, in a word.

/// Response flags of the access log, Envoy's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// `UAEX`: denied by external authorization.
    UnauthorizedExternalService,
    /// `RL`: over a rate limit.
    RateLimited,
    /// `RLSE`: the rate limit service failed.
    RateLimitServiceError,
    /// `NR`: no route.
    NoRouteFound,
    /// `NC`: the route names no cluster that there is.
    NoClusterFound,
    /// `UH`: no healthy upstream.
    NoHealthyUpstream,
    /// `UF`: the upstream could not be reached.
    UpstreamConnectionFailure,
    /// `UC`: the upstream connection broke.
    UpstreamConnectionTermination,
    /// `UR`: the upstream reset a connection that is passed on as it is.
    UpstreamRemoteReset,
    /// `UT`: the upstream did not answer in time.
    UpstreamRequestTimeout,
    /// `URX`: the request was sent again as often as allowed.
    UpstreamRetryLimitExceeded,
    /// `UO`: too much of the cluster was in use for the request, or for sending it again.
    UpstreamOverflow,
    /// `DT`: the stream lasted as long as its route or listener lets it.
    DurationTimeout,
    /// `UMSDR`: the stream lasted as long as its cluster lets it.
    UpstreamMaxStreamDurationReached,
    /// `SI`: the stream was idle for too long.
    StreamIdleTimeout,
    /// `DC`: the client went away.
    DownstreamConnectionTermination,
    /// `DPE`: the request was malformed.
    DownstreamProtocolError,
    /// `OM`: the proxy was overloaded.
    Overload,
}

impl ResponseFlag {
    /// All of them.
    pub const ALL: [Self; 18] = [
        Self::UnauthorizedExternalService,
        Self::RateLimited,
        Self::RateLimitServiceError,
        Self::NoRouteFound,
        Self::NoHealthyUpstream,
        Self::UpstreamConnectionFailure,
        Self::UpstreamConnectionTermination,
        Self::UpstreamRemoteReset,
        Self::UpstreamRequestTimeout,
        Self::UpstreamRetryLimitExceeded,
        Self::UpstreamOverflow,
        Self::DurationTimeout,
        Self::UpstreamMaxStreamDurationReached,
        Self::StreamIdleTimeout,
        Self::DownstreamConnectionTermination,
        Self::DownstreamProtocolError,
        Self::NoClusterFound,
        Self::Overload,
    ];

    /// The short name that the access log shows.
    pub fn short(self) -> &'static str {
        match self {
            Self::UnauthorizedExternalService => "UAEX",
            Self::RateLimited => "RL",
            Self::RateLimitServiceError => "RLSE",
            Self::NoRouteFound => "NR",
            Self::NoClusterFound => "NC",
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamRemoteReset => "UR",
            Self::UpstreamRequestTimeout => "UT",
            Self::UpstreamRetryLimitExceeded => "URX",
            Self::UpstreamOverflow => "UO",
            Self::DurationTimeout => "DT",
            Self::UpstreamMaxStreamDurationReached => "UMSDR",
            Self::StreamIdleTimeout => "SI",
            Self::DownstreamConnectionTermination => "DC",
            Self::DownstreamProtocolError => "DPE",
            Self::Overload => "OM",
        }
    }

    /// The flag of this short name.
    pub fn named(short: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|flag| flag.short() == short)
    }

    /// The long name.
    pub fn long(self) -> &'static str {
        match self {
            Self::UnauthorizedExternalService => "UnauthorizedExternalService",
            Self::RateLimited => "RateLimited",
            Self::RateLimitServiceError => "RateLimitServiceError",
            Self::NoRouteFound => "NoRouteFound",
            Self::NoHealthyUpstream => "NoHealthyUpstream",
            Self::UpstreamConnectionFailure => "UpstreamConnectionFailure",
            Self::UpstreamConnectionTermination => "UpstreamConnectionTermination",
            Self::UpstreamRemoteReset => "UpstreamRemoteReset",
            Self::UpstreamRequestTimeout => "UpstreamRequestTimeout",
            Self::UpstreamRetryLimitExceeded => "UpstreamRetryLimitExceeded",
            Self::UpstreamOverflow => "UpstreamOverflow",
            Self::DurationTimeout => "DurationTimeout",
            Self::UpstreamMaxStreamDurationReached => "UpstreamMaxStreamDurationReached",
            Self::StreamIdleTimeout => "StreamIdleTimeout",
            Self::DownstreamConnectionTermination => "DownstreamConnectionTermination",
            Self::DownstreamProtocolError => "DownstreamProtocolError",
            Self::NoClusterFound => "NoClusterFound",
            Self::Overload => "OverloadManagerTerminated",
        }
    }
}
