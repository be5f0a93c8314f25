package zfsctl

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/internal/nvlist"
)

const (
	beginSize  = 312         // sizeof (dmu_replay_record_t)
	beginMagic = 0x2F5bacbac // DMU_BACKUP_MAGIC
	atMagic    = 8           // drr_magic
	atVersion  = 16          // drr_versioninfo
	substream  = 1           // DMU_SUBSTREAM
	headerType = 0x3         // DMU_GET_STREAM_HDRTYPE
)

// Receive makes a filesystem with one snapshot from the stream that from gives (ZFS_IOC_RECV_NEW). origin is the
// snapshot that an incremental stream builds on, or "". Returns unix.EINVAL if the stream does not hold exactly one
// snapshot: it was made by zfs send with -R or -p.
func (c *Control) Receive(snapshot, origin string, values Values, from *os.File) error {
	begin := make([]byte, beginSize)
	if _, err := io.ReadFull(from, begin); err != nil {
		return fmt.Errorf("zfs receive %s: read the beginning of the stream: %w", snapshot, err)
	}
	if !isSingle(begin) {
		return &Error{"receive", snapshot, unix.EINVAL}
	}
	input := nvlist.List{
		"snapname": snapshot, "begin_record": begin, "input_fd": int32(from.Fd()), "localprops": nvlist.List(values),
	}
	if origin != "" {
		input["origin"] = origin
	}
	answer := nvlist.List{}
	name, _, _ := strings.Cut(snapshot, "@")
	return c.do(request{
		op: "receive", number: iocRecvNew, name: name, input: input, answer: &answer, history: "zfs receive " + snapshot,
	})
}

// isSingle reports whether a stream that begins so holds one snapshot. The stream may come from a machine with the other
// byte order.
func isSingle(begin []byte) bool {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		if order.Uint64(begin[atMagic:]) == beginMagic {
			return order.Uint64(begin[atVersion:])&headerType == substream
		}
	}
	return false
}
