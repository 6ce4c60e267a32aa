// Package virtual runs coordinators in virtual time: real consensus, state machine, allocator, pool keeper and agent
// links, on a network and disks in memory, with scripted agents and clients, and a nemesis that kills, cuts off and
// slows them. Minutes take seconds, so many seeds can be tried; package check judges what came of it.
package virtual
