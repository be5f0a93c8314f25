package quota_test

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/quota"
)

func ExampleParseSize() {
	for _, text := range []string{"512m", "1.5 GiB", "0"} {
		size, err := quota.ParseSize(text)
		if errdefs.IsInvalidArgument(err) {
			fmt.Printf("%q is no size\n", text)
			continue
		}
		fmt.Println(size, quota.FormatSize(size))
	}
	// Output:
	// 536870912 512MiB
	// 1610612736 1.5GiB
	// "0" is no size
}

// A driver has a default, and a layer may have a size of its own.
func ExampleOptions_ParseLimit() {
	options := quota.Options{MinSpace: quota.Minimum{Bytes: 1 << 30, Option: "btrfs.min_space"}}
	if err := options.Setters().Parse("btrfs", []string{"btrfs.size=20G"}); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(quota.FormatSize(options.DefaultLimit().Bytes))
	for _, size := range []string{"2G", "2M"} {
		limit, err := options.ParseLimit(size)
		fmt.Println(quota.FormatSize(limit.Bytes), errdefs.IsInvalidArgument(err))
	}
	// Output:
	// 20GiB
	// 2GiB false
	// 0B true
}
