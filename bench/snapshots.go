package main

import (
	"errors"
	"fmt"
	"time"
)

// snapshotContender is a contender that is a snapshotter of containerd with a differ.
type snapshotContender interface {
	contender
	// comparing calls f with a function that compares an active snapshot with its parent, given mounts of both. It
	// writes the differences to the content store.
	comparing(id, parent string, f func(compare func() error) error) error
	// commit makes an active snapshot a committed one of another name.
	commit(name, id string) error
}

var errNoSnapshots = errors.New("the contender has no snapshots")

// prepareOthers makes snapshots that stay, from one number to another.
func (r *run) prepareOthers(from, to int) error {
	for i := from; i < to; i++ {
		if err := r.driver.create(fmt.Sprintf("other%05d", i), baseID, 0); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) compare() error {
	driver, ok := r.driver.(snapshotContender)
	if !ok {
		return errNoSnapshots
	}
	return driver.comparing(childID, baseID, func(compare func() error) error {
		if err := compare(); err != nil { // warms the caches
			return err
		}
		return r.repeatedBy(func() (time.Duration, error) {
			if err := r.forget(); err != nil {
				return 0, err
			}
			return r.clock(opCompare, compare)
		})
	})
}

// live measures the usage of the child, and has snapshots made, changed and then either committed or removed. beside
// is added to the names of the operations.
func (r *run) live(beside operation) error {
	driver, ok := r.driver.(snapshotContender)
	if !ok {
		return errNoSnapshots
	}
	if err := r.usageAs(opSnapshotUsage + beside); err != nil {
		return err
	}
	return r.repeatedBy(func() (time.Duration, error) {
		committing, err := r.liveToCommit(driver, beside)
		if err != nil {
			return 0, err
		}
		removing, err := r.liveToRemove(driver, beside)
		return committing + removing, err
	})
}

// prepared makes a snapshot, which is timed, and changes it.
func (r *run) prepared(driver snapshotContender, id string, beside operation) (time.Duration, error) {
	if err := r.settle(); err != nil {
		return 0, err
	}
	preparing, err := r.clock(opPrepare+beside, func() error { return driver.create(id, baseID, 0) })
	if err != nil {
		return 0, err
	}
	return preparing, r.change(id)
}

func (r *run) liveToCommit(driver snapshotContender, beside operation) (time.Duration, error) {
	const id, image = "committed", "image"
	preparing, err := r.prepared(driver, id, beside)
	if err != nil {
		return 0, err
	}
	committing, err := r.clock(opSnapshotCommit+beside, func() error { return driver.commit(image, id) })
	if err != nil {
		return 0, err
	}
	return preparing + committing, driver.remove(image)
}

func (r *run) liveToRemove(driver snapshotContender, beside operation) (time.Duration, error) {
	const id = "removed"
	preparing, err := r.prepared(driver, id, beside)
	if err != nil {
		return 0, err
	}
	if err := r.settle(); err != nil {
		return 0, err
	}
	removing, err := r.clock(opSnapshotRemove+beside, func() error { return driver.remove(id) })
	return preparing + removing, err
}
