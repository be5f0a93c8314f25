package apiserver

import (
	"log/slog"
	"strings"
	"time"
)

// Users and groups of tests.
const (
	apiGroup = 5000
	alice    = 1001 // a member of apiGroup and of the namespace ci
	bob      = 1002 // a member of apiGroup and of the namespace dev
	carol    = 1003 // a member of apiGroup alone
	mallory  = 1004 // nobody
)

func testOptions(stores Stores) Options {
	return Options{
		Version: "test", Stores: stores, Groups: []uint32{apiGroup}, Token: strings.Repeat("t", 32), StopTimeout: time.Minute,
		Namespaces: []Namespace{
			{Name: "ci", UIDs: []uint32{alice}, Readable: []string{"base", "docker:web"}},
			{Name: "dev", UIDs: []uint32{bob}},
		},
		Log: slog.New(slog.DiscardHandler),
	}
}

// peerOfUser is a process of a user, which is a member of apiGroup unless it is mallory.
func peerOfUser(uid uint32) Peer {
	p := Peer{UID: uid, Groups: []uint32{uid}}
	if uid != mallory {
		p.Groups = append(p.Groups, apiGroup)
	}
	return p
}
