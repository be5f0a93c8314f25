package zfsctl

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/nvlist"
)

// Receive makes a filesystem with one snapshot from the stream that from gives (ZFS_IOC_RECV_NEW). origin is the
// snapshot that an incremental stream builds on, or "". Returns *StreamError if the stream is at fault, and unix.EEXIST if
// the filesystem exists.
func (c *Control) Receive(snapshot, origin string, values Values, from *os.File) error {
	begin := make([]byte, BeginSize)
	if _, err := io.ReadFull(from, begin); err != nil {
		err = fmt.Errorf("zfs receive %s: read the beginning of the stream: %w", snapshot, err)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return &StreamError{Truncated, err}
		}
		return err
	}
	if fault := faultOfBeginning(begin, origin); fault != 0 {
		return &StreamError{fault, &Error{"receive", snapshot, unix.EINVAL}}
	}
	input := nvlist.List{
		"snapname": snapshot, "begin_record": begin, "input_fd": int32(from.Fd()), "localprops": nvlist.List(values),
	}
	if origin != "" {
		input["origin"] = origin
	}
	answer := nvlist.List{}
	err := c.do(request{
		op: "receive", number: iocRecvNew, name: parentOf(snapshot), input: input, answer: &answer,
		history: "zfs receive " + received(origin, values) + snapshot,
	})
	var refused *Error
	if errors.As(err, &refused) {
		refused.Name = snapshot
		if fault := faultOfErrno(refused.Err); fault != 0 {
			return &StreamError{fault, err}
		}
	}
	return err
}

// received are the options of a receive in the words of the zfs command.
func received(origin string, values Values) string {
	if origin == "" {
		return values.options()
	}
	return Values{"origin": origin}.options() + values.options()
}

// parentOf is the dataset above that of a snapshot. Permission to receive is a matter of that dataset: the new one does not
// exist yet, and so belongs to no user namespace.
func parentOf(snapshot string) string {
	name, _, _ := strings.Cut(snapshot, "@")
	if end := strings.LastIndexByte(name, '/'); end >= 0 {
		return name[:end]
	}
	return name
}
