//! One row of `django_celery_results_groupresult`, under Django's column names.

use std::fmt;

use chrono::{DateTime, Utc};

/// A group that was saved with `GroupResult.save()`: a row, or the part of it that one message
/// contains.
///
/// The fields are the columns of django-celery-results' `GroupResult`
/// (`django_celery_results/models.py`, 2.6.0). Times are in UTC, to the microsecond.
#[derive(Clone, PartialEq, Eq)]
pub struct GroupResult {
    /// The group's id, the key of the row.
    pub group_id: String,
    /// The serializer of `result`, such as `application/json`.
    pub content_type: String,
    /// The charset of the serialized text, or `binary` if the column contains base64.
    pub content_encoding: String,
    /// The ids of the group's tasks.
    pub result: Option<String>,
    /// When the group was first saved.
    pub date_created: DateTime<Utc>,
    /// When the group was last saved.
    pub date_done: DateTime<Utc>,
}

/// Shows the id but not the tasks.
impl fmt::Debug for GroupResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("GroupResult")
            .field("group_id", &self.group_id)
            .field("date_done", &self.date_done)
            .finish_non_exhaustive()
    }
}
