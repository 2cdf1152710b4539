"""A Redis client: connections, subscriptions, Cluster, Sentinel. Knows no key, no script and no job."""
