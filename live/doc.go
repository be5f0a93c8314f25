// Package live forks layers that may be in use, keeps snapshots of them, rolls them back and merges forks.
//
// All of these build on moments. A moment is a sealed volume with the content that a layer had at one time. A snapshot is
// a moment with a name. A fork is a writable clone of a moment. A rollback gives a layer a clone of a moment as its
// content, and keeps the former content as another moment. A merge applies the changes of a fork since its moment. A Still is a
// moment that somebody reads.
//
// The facts about a moment are in a file of its own. docs/reference/on-disk-format.md specifies the files and names. A
// moment that has no name and from which nothing was made is destroyed by itself. So layers, snapshots and forks can be
// removed in any order.
//
// A Schedule says when snapshots are taken, which a daemon does by TakeScheduled, and how many of them stay. Hooks are commands around
// a snapshot.
//
// Every step is recorded before it begins. The next caller that works on the directory finishes or undoes a step that a
// crash interrupted. Several processes may work on one directory at once.
package live
