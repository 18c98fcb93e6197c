"""Names of the columns of a log and of an items table, and the length of a day."""

USER, ITEM, TIME, EVENT_TYPE, VALUE = "user_id", "item_id", "timestamp", "event_type", "value"
DAY_US = 86_400_000_000
