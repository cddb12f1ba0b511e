//! The search service: the same callers and rights as the console's.

use std::sync::Arc;

use tidemark_proto::limits::NAME_MAX_CHARS;
use tidemark_proto::v1::search_server::Search;
use tidemark_proto::v1::{
    ListTagsRequest, Point, SearchPointsReply, SearchPointsRequest, SetTagRequest, Tag, TagsReply, When, when,
};
use tonic::{Request, Response, Status};

use super::bookmarks::level_named;
use super::{caller, catalog, vm_named};
use crate::catalog::PointSearch;
use crate::clock::now_us;
use crate::core::Core;
use crate::fleet::Vm;
use crate::sets::reconcile;
use crate::transport::Peer;

/// Points in one answer unless told otherwise: what a person looks through.
const LIMIT_DEFAULT: u32 = 100;

/// Points in one answer at most: as in a list of one VM's points. More are cut, and the answer says so.
const LIMIT_MAX: u32 = 10_000;

/// Tags of one VM at most: each is looked at by every search. More are refused.
const TAGS_MAX: usize = 64;

/// Characters in a tag's key at most. Longer ones are refused.
const KEY_MAX_CHARS: usize = 63;

/// Serves searches.
#[derive(Debug)]
pub struct SearchService {
    core: Arc<Core>,
}

impl SearchService {
    /// Serves `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

fn check_tag(key: &str, value: &str) -> Result<(), Status> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || key.chars().count() > KEY_MAX_CHARS || !key.chars().all(plain) {
        let text = format!("a tag's key has 1 to {KEY_MAX_CHARS} letters, digits and -_./");
        return Err(Status::invalid_argument(text));
    }
    if value.chars().count() > NAME_MAX_CHARS || value.chars().any(char::is_control) {
        let text = format!("a tag's value has at most {NAME_MAX_CHARS} printable characters");
        return Err(Status::invalid_argument(text));
    }
    Ok(())
}

async fn tags(core: &Core, vm: &Vm) -> Result<TagsReply, Status> {
    let rows = core.catalog.tags(vm.id).await.map_err(catalog)?;
    Ok(TagsReply { tags: rows.into_iter().map(|row| Tag { key: row.key, value: row.value }).collect() })
}

async fn set_tag(core: &Core, caller: &Peer, request: SetTagRequest) -> Result<TagsReply, Status> {
    check_tag(&request.key, &request.value)?;
    let vm = vm_named(core, &request.vm)?;
    if vm.origin.is_some() {
        return Err(Status::failed_precondition(format!("'{}' is a clone: clones have no tags", vm.name)));
    }
    let detail = format!("{}={}", request.key, request.value);
    if request.value.is_empty() {
        if !core.catalog.remove_tag(vm.id, &request.key).await.map_err(catalog)? {
            return Err(Status::not_found(format!("'{}' has no tag '{}'", vm.name, request.key)));
        }
    } else {
        let before = core.catalog.tags(vm.id).await.map_err(catalog)?;
        if before.len() >= TAGS_MAX && !before.iter().any(|tag| tag.key == request.key) {
            let text = format!("'{}' has {TAGS_MAX} tags, which is the most: remove one first", vm.name);
            return Err(Status::failed_precondition(text));
        }
        core.catalog.set_tag(vm.id, &request.key, &request.value).await.map_err(catalog)?;
    }
    core.audit(&caller.role.uri(), "tag VM", &vm.name, &detail).await;
    reconcile(core, &format!("tag {detail}")).await;
    tags(core, &vm).await
}

/// A bound as a time; other points than times belong to one VM.
fn time(when: Option<When>, open: u64, now_us: u64) -> Result<u64, Status> {
    match when.and_then(|when| when.point) {
        None => Ok(open),
        Some(when::Point::Latest(_)) => Ok(now_us),
        Some(when::Point::TimeUs(time_us)) => Ok(time_us),
        Some(when::Point::AgoUs(ago_us)) => Ok(now_us.saturating_sub(ago_us)),
        Some(when::Point::Lsn(_) | when::Point::Bookmark(_)) => Err(Status::invalid_argument(
            "a search over VMs goes by time: name --from and --to as times, -2h or latest",
        )),
    }
}

async fn search(core: &Core, request: SearchPointsRequest) -> Result<SearchPointsReply, Status> {
    let too_long = |text: &str| text.chars().count() > NAME_MAX_CHARS;
    if too_long(&request.text) || too_long(&request.vm) {
        return Err(Status::invalid_argument(format!(
            "what is searched for has at most {NAME_MAX_CHARS} characters"
        )));
    }
    // Empty is any.
    level_named(&request.consistency)?;
    if let Some(tag) = &request.tag {
        check_tag(&tag.key, &tag.value)?;
    }
    let limit = if request.limit == 0 { LIMIT_DEFAULT } else { request.limit.min(LIMIT_MAX) };
    let now_us = now_us();
    let wanted = PointSearch {
        text: request.text,
        vm: request.vm,
        tag: request.tag.map(|tag| (tag.key, tag.value)),
        from_us: time(request.from, 0, now_us)?,
        to_us: time(request.to, u64::MAX, now_us)?,
        consistency: request.consistency,
        // One more tells whether there are more.
        limit: limit.saturating_add(1),
    };
    let mut found = core.catalog.search_points(&wanted).await.map_err(catalog)?;
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = found.len() > limit;
    found.truncate(limit);
    let points = found.into_iter().map(|point| Point {
        lsn: point.lsn().0,
        time_us: point.time_us(),
        vm: point.vm,
        kind: "bookmark".into(),
        name: point.name,
        consistency: point.consistency,
    });
    Ok(SearchPointsReply { points: points.collect(), more })
}

#[tonic::async_trait]
impl Search for SearchService {
    async fn set_tag(&self, request: Request<SetTagRequest>) -> Result<Response<TagsReply>, Status> {
        let caller = caller(&request)?;
        set_tag(&self.core, &caller, request.into_inner()).await.map(Response::new)
    }

    async fn list_tags(&self, request: Request<ListTagsRequest>) -> Result<Response<TagsReply>, Status> {
        let vm = vm_named(&self.core, &request.into_inner().vm)?;
        tags(&self.core, &vm).await.map(Response::new)
    }

    async fn search_points(
        &self,
        request: Request<SearchPointsRequest>,
    ) -> Result<Response<SearchPointsReply>, Status> {
        search(&self.core, request.into_inner()).await.map(Response::new)
    }
}
