# Builds a network in the current namespace, and sends: devices.sh KIND PYTHON SENDER. Five processes, called s1 to s5, send 7
# queries each to a host whose link-layer address is not known yet.
set -e
mount -t tmpfs none /run
mkdir -p /run/netns
ip link set lo up
ip netns add b
ip netns add c
from=""
to=10.9.0.2
case $1 in
veth | late)
	ip link add v0 type veth peer name v1 netns b
	ip address add 10.9.0.1/24 dev v0
	ip link set v0 up
	ip -n b link set v1 up
	;;
macvlan)
	ip link add v0 type veth peer name v1 netns b
	ip link set v0 up
	ip link add m0 link v0 type macvlan mode bridge
	ip address add 10.9.0.1/24 dev m0
	ip link set m0 up
	ip -n b link set v1 up
	;;
bridge | shaped)
	ip link add br0 type bridge
	ip address add 10.9.0.1/24 dev br0
	ip link set br0 up
	ip link add v0 type veth peer name v1 netns b
	ip link set v0 master br0 up
	ip -n b link set v1 up
	;;
containers) # from b, over a bridge in this namespace, to c
	ip link add br0 type bridge
	ip link set br0 up
	for name in b c; do
		ip link add "v$name" type veth peer name e0 netns $name
		ip link set "v$name" master br0 up
		ip -n $name link set e0 up
	done
	ip -n b address add 10.9.0.1/24 dev e0
	ip -n c address add 10.9.0.2/24 dev e0
	from="ip netns exec b"
	;;
routed) # from b, through this namespace as a router, to c
	echo 1 >/proc/sys/net/ipv4/ip_forward
	for name in b c; do
		ip link add "v$name" type veth peer name e0 netns $name
		ip link set "v$name" up
		ip -n $name link set e0 up
	done
	ip address add 10.9.1.1/24 dev vb
	ip address add 10.9.2.1/24 dev vc
	ip -n b address add 10.9.1.2/24 dev e0
	ip -n c address add 10.9.2.2/24 dev e0
	ip -n b route add default via 10.9.1.1
	ip -n c route add default via 10.9.2.1
	from="ip netns exec b"
	to=10.9.2.2
	;;
esac
if [ "$1" = shaped ]; then
	# The packets wait in the queue of the upper device, and pass the lower one in the context of other processes.
	tc qdisc add dev br0 root tbf rate 100kbit burst 2kb latency 10s
fi
case $1 in
veth | macvlan | bridge | shaped) ip -n b address add 10.9.0.2/24 dev v1 ;;
esac
for number in 1 2 3 4 5; do
	$from "$2" -c "$3" $to "s$number"
	if [ "$1" != late ]; then
		ip neigh flush all
		ip -n b neigh flush all
		ip -n c neigh flush all
	fi
done
if [ "$1" = late ]; then
	# All five processes have ended when their packets leave, in the context of other processes.
	ip -n b address add 10.9.0.2/24 dev v1
	end=$(($(date +%s) + 10))
	# On a very slow machine, the kernel has dropped the first packets by now. They count, because they were sent.
	until ip neigh show 10.9.0.2 dev v0 | grep -q lladdr; do
		[ "$(date +%s)" -lt $end ] || break
		sleep 0.1
	done
fi
sleep 0.5
if [ "$1" = shaped ]; then
	end=$(($(date +%s) + 20))
	until tc -s qdisc show dev br0 | grep -q 'backlog 0b'; do
		[ "$(date +%s)" -lt $end ]
		sleep 0.1
	done
fi
