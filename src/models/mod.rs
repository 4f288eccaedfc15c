//! Networks: functions that push nodes onto a graph.
