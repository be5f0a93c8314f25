package apiserver

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/live"
)

// TestKinds: each kind of error of docs/reference/errors.md has one kind and one status in the API.
func TestKinds(t *testing.T) {
	for _, c := range []struct {
		err    error
		kind   api.Kind
		status int
	}{
		{errdefs.ErrInvalidArgument, api.KindInvalidArgument, 400},
		{errdefs.ErrNotFound, api.KindNotFound, 404},
		{errdefs.ErrAlreadyExists, api.KindAlreadyExists, 409},
		{errdefs.ErrFailedPrecondition, api.KindFailedPrecondition, 409},
		{fault.ErrInUse, api.KindFailedPrecondition, 409},
		{fault.ErrSealed, api.KindFailedPrecondition, 409},
		{syscall.EROFS, api.KindFailedPrecondition, 409},
		{errdefs.ErrNotImplemented, api.KindNotImplemented, 501},
		{errdefs.ErrPermissionDenied, api.KindPermissionDenied, 403},
		{syscall.EPERM, api.KindPermissionDenied, 403},
		{errdefs.ErrResourceExhausted, api.KindResourceExhausted, 507},
		{syscall.ENOSPC, api.KindResourceExhausted, 507},
		{syscall.EDQUOT, api.KindResourceExhausted, 507},
		{&live.ConflictError{Conflicts: []live.Conflict{{Path: "/a"}}}, api.KindConflict, 409},
		{errdefs.ErrAborted, api.KindAborted, 409},
		{errdefs.ErrUnavailable, api.KindUnavailable, 503},
		{errdefs.ErrDataLoss, api.KindDataLoss, 500},
		{graphdriver.ErrPrerequisites, api.KindNotImplemented, 501},
		{graphdriver.ErrIncompatibleFS, api.KindNotImplemented, 501},
		{graphdriver.ErrNotSupported, api.KindNotImplemented, 501},
		{&http.MaxBytesError{Limit: 1}, api.KindTooLarge, 413},
		{context.Canceled, api.KindCancelled, 503},
		{context.DeadlineExceeded, api.KindDeadlineExceeded, 504},
		{refused(api.KindTooManyRequests, "x", ""), api.KindTooManyRequests, 429},
		{refused(api.KindUnauthenticated, "x", ""), api.KindUnauthenticated, 401},
		{refused(api.KindMethodNotAllowed, "x", ""), api.KindMethodNotAllowed, 405},
		{fmt.Errorf("other"), api.KindUnknown, 500},
	} {
		e := errorOf(fmt.Errorf("do it: %w", fault.Wrap("do", "it", c.err)), "it")
		assert.Equal(t, c.kind, e.Kind, "%v", c.err)
		assert.Equal(t, c.status, e.Kind.Status(), "%v", c.err)
		assert.Equal(t, "it", e.Object)
		assert.Contains(t, string(api.OpenAPI), string(c.kind))
	}
	for _, err := range []error{errdefs.ErrConflict, errdefs.ErrAborted, errdefs.ErrPermissionDenied, syscall.ENOSPC, syscall.EROFS} {
		assert.NotEmpty(t, errorOf(err, "").Advice, "%v", err)
	}
}

// TestNames: members name layers of their namespaces, and those that these may read.
func TestNames(t *testing.T) {
	c := &caller{namespaces: []*namespace{{Namespace: Namespace{Name: "ci", Readable: []string{"base", "docker:web", "debian:12"}}}}}
	for ref, may := range map[string][]access{
		"ci.a": {reads, changes}, "fork:ci.a": {reads, changes}, "ci.a@before": {reads, changes}, "fork:ci.a@before": {reads, changes},
		"base": {reads}, "base@monday": {reads}, "docker:web": {reads}, "docker:web@x": {reads}, "debian:12": {reads},
		"ci": nil, "cia": nil, "base2": nil, "docker:web2": nil, "docker:ci.a": nil, "containerd:ci./a": nil, "x@ci.a": nil, "@ci.a": nil,
		"ci-a": nil, "CI.a": nil, "fork:fork:ci.a": nil, "moment-0123456789ab-abcdefghijkl": nil, "debian:1": nil,
	} {
		for _, a := range []access{reads, changes} {
			err := c.mayName(ref, a)
			if slices.Contains(may, a) {
				assert.NoError(t, err, ref)
			} else {
				assert.Equal(t, api.KindPermissionDenied, kindOf(err), "%s %d", ref, a)
			}
		}
	}
	for _, bad := range []string{"", strings.Repeat("a", maxRef+1), "a\x00b", "a\nb", "\xff"} {
		assert.Equal(t, api.KindInvalidArgument, kindOf(checkRef(bad)), "%q", bad)
	}
}

// TestGate: a user cannot get more than its share as other users of the kernel, nor keep out the namespaces.
func TestGate(t *testing.T) {
	const group = 7000
	opts := testOptions(&noStores{})
	opts.Namespaces[1].GIDs = []uint32{group}
	s := New(opts)
	enter := func(g *gate, p Peer) api.Kind {
		_, kind := g.enter(s.senderOf(p))
		return kind
	}
	for _, b := range []bounds{requestBounds, connectionBounds} {
		g := newGate(b)
		for _, groups := range [][]uint32{{apiGroup}, {apiGroup, group}, {}} {
			for uid := range uint32(2 * b.all) {
				enter(g, Peer{UID: 100_000 + uid, Groups: groups})
			}
		}
		assert.Equal(t, 2*b.each, g.others, "the subordinate users of a member")
		for range b.each {
			assert.Empty(t, enter(g, peerOfUser(alice)))
		}
		assert.Equal(t, api.KindTooManyRequests, enter(g, peerOfUser(alice)))
		for range b.kept {
			assert.Empty(t, enter(g, peerOfUser(bob)), "each namespace has its share")
		}
		assert.Equal(t, api.KindUnavailable, enter(g, peerOfUser(bob)))
		for range b.all {
			assert.Empty(t, enter(g, Peer{}), "root")
		}
	}
}
