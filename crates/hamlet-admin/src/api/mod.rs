//! The API's types: JSON in camel case, stable and documented field by field.
//!
//! Ages and delays are whole milliseconds and end in `Ms`; sizes end in `Bytes`. Fields are only
//! ever added; readers ignore those that they don't know. Absent means unknown or not applicable,
//! never zero.

pub mod age;
pub mod agent;
pub mod bundle;
pub mod list;
pub mod peer;
pub mod peering;
pub mod policy;
pub mod service;
pub mod transcript;

pub use age::human_age;
pub use agent::{
    AgentStatus, AuditStatus, AuthorityStatus, ConfigStatus, Confirmed, IdentityStatus, ListenerStatus,
    MissingPeer, PlannedStatus, Problem, ReadyCheck, ReloadProblems, ReloadReport, SourceStatus,
    StatusReport, StoreStatus, TaskFailure, TaskStatus, WorkloadApiStatus,
};
pub use bundle::{
    AnchorStatus, AnnouncedStatus, BundleSet, BundleSetError, BundleStatus, OursThere, OwnBundle, RootsChange,
};
pub use list::{ApiError, ErrorBody, ErrorCode, Found, Kind, List, Listed, find};
pub use peer::{
    BeatStatus, CrlStatus, Direction, Event, Flow, HelloStatus, ImportProgress, PeerState, PeerStatus, Proof,
    PublishProgress, RefusedService, RoundsStatus, StallKind, StallStatus, UnsaidService, WindowStatus,
};
pub use peering::{
    InvitationStatus, Invited, PeerRemoved, PeeringAnswer, PeeringList, PeeringPeer, PeeringRequest,
    PeeringStanding, PeeringTerms, TokenText,
};
pub use policy::{ImportStatus, PublicationStatus};
pub use service::{InstanceStatus, Origin, Programming, ServiceStatus, Standing};
pub use transcript::{TranscriptLine, TranscriptPage, Way};
