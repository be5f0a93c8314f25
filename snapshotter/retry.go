package snapshotter

import (
	"context"
	"maps"
	"time"

	"github.com/cowshed/cowshed/internal/poll"
)

// retryPauses are the pauses before RetryCleanup tries again.
var retryPauses = poll.Pauses{First: time.Second, Longest: time.Minute}

// RetryCleanup calls Cleanup while there are doomed volumes, or moments of volumes that are gone, until ctx is done: after
// a second, then less and less often, but at least once a minute. containerd calls Cleanup only after it has removed
// snapshots, and a volume may be in use until long after that. After each Cleanup, RetryCleanup calls tried.
func (s *Snapshotter) RetryCleanup(ctx context.Context, tried func()) {
	told := ""
	for {
		select {
		case <-s.wake:
		case <-ctx.Done():
			return
		}
		first := true // it only looks, and leaves containerd a second for its own Cleanup
		_ = poll.WhileBusy(ctx, retryPauses, func() (busy bool, err error) {
			if !first && s.hasWork() {
				told = s.retryCleanup(ctx, told)
				tried()
			}
			first = false
			return s.hasWork(), nil
		})
	}
}

// retryCleanup calls Cleanup, and returns its error as text. It logs the error unless that was told before.
func (s *Snapshotter) retryCleanup(ctx context.Context, told string) string {
	err := s.Cleanup(ctx)
	if err == nil {
		return ""
	}
	if told != err.Error() && ctx.Err() == nil {
		s.log.Warn("snapshotter: volumes of removed snapshots cannot be destroyed yet", "error", err)
	}
	return err.Error()
}

// wakeRetry makes RetryCleanup look whether there is work.
func (s *Snapshotter) wakeRetry() {
	select {
	case s.wake <- struct{}{}:
	default: // it has not seen the call before yet
	}
}

// hasWork reports whether there is something for Cleanup.
func (s *Snapshotter) hasWork() bool { return s.hasDoomed() || s.hasMoments() }

func (s *Snapshotter) hasDoomed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.doomed) > 0
}

// Doomed returns the volumes of removed snapshots that could not be destroyed yet, each with the reason.
func (s *Snapshotter) Doomed() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.reasons)
}

// noteReason notes why a doomed volume could not be destroyed yet, and reports whether that is new.
func (s *Snapshotter) noteReason(volume string, why error) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.reasons[volume]
	s.reasons[volume] = why.Error()
	return before != why.Error()
}

// forgetReason reports whether there was a reason.
func (s *Snapshotter) forgetReason(volume string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.reasons[volume]
	delete(s.reasons, volume)
	return ok
}
