"""Replicas and directories on Ray: `multispin cluster` (docs/cluster.md).

A *keeper* keeps one child process, a replica or a directory, and the *supervisor* decides which
keepers there are. Both are Ray actors; what they keep is not, and lives on without them.
"""
