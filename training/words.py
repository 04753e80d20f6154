"""Word lists for the generated English: broad on purpose, so that ordinary prose looks ordinary to the tiny guard."""

from training.listing import items, words

NOUNS = words("""
apple apron arch arm armchair artist author axe baby bag ball balloon banana band bank barn barrel basket bath
battery beach bean
bear beard bed bee beetle bell belt bench berry bicycle bird biscuit blanket blender block board boat body bone book
boot bottle bowl
box boy branch bread breakfast brick bridge broom brother brush bucket bug builder building bulb bus bush butter
button cabin cabinet
cable cake camel camera camp candle canvas cap car carpet carrot cart castle cat cave ceiling cellar chain chair
chalk cheese chef
cherry chest chicken child chimney city class clay cliff clock cloth cloud club coat coffee coin collar computer
cookie copper corner
cotton couch cousin cow crab cream creek crop crowd cup cupboard curtain cushion customer dam dancer daughter deer
desert desk dessert
diary dish doctor dog door dough dragon drawer dress driver drum duck dust eagle ear egg elbow elephant engine
engineer envelope eye
fabric face factory family fan farm farmer father fence fern field finger fire fish flag flame floor flour flower
flute fly fog
forest fork fountain fox frame friend frog fruit garage garden garlic gate girl glass glove glue goat grape grass
guitar hammer hand
handle harbour hat hay helmet hen hill honey hook horn horse hose hospital hotel house ice insect iron island jacket
jar jeans juice
key keyboard kitchen kite kitten knee knife knot ladder lake lamb lamp lawn leaf leather leg lemon letter library lid
light lion lips
lock log lunch machine magnet map market mask mat meadow meal meat medicine metal milk mill mirror moon mother
mountain mouse mouth
mud mug muscle museum mushroom nail neck needle neighbour nest net newspaper night nose notebook nurse nut oak oar
ocean office oil
onion orange orchard oven owl paint painting pan pants paper parcel park path pea peach pear pen pencil pepper person
phone photo piano
picture pie pig pillow pilot pin pine pipe pizza plane plant plastic plate player pocket pond pony pool porch pot
potato powder printer
pump puppy purse rabbit radio rail rain rat recipe rice ring river road robot rock roof room root rope rose rug ruler
sack saddle sail
sailor salad salt sand sandwich sauce saucer saw scarf school scissors screen screw sea seat seed sheep sheet shelf
shell ship shirt
shoe shop shoulder shovel shower sign silk singer sink sister skin skirt sky sled snail snake snow soap sock sofa
soil soldier son song
soup spade sparrow spider spoon sponge spring stable stage stairs stamp star station steam steel stem step stick
stomach stone stool
storm stove straw stream street string student sugar suit sun sweater swing table tail tank tap tape tea teacher team
teeth tent theatre
thread thumb ticket tiger tile tin tire toast toe tomato tongue tool tooth towel tower town toy track tractor train
tray tree truck
trumpet trunk tub tunnel turtle umbrella uncle valley van vase vegetable village vine violin wagon waiter wall wallet
watch water wave
wax wheat wheel whistle wind window wine wing winter wire wolf woman wood wool worker worm yard zebra
""")

ABSTRACT = words("""
ability advice age agreement aim amount answer approach area argument art aspect attempt attention attitude balance
basis beauty
behaviour belief benefit career case cause challenge chance change character choice comfort concept condition
confidence connection
context control cost courage culture custom damage danger data day deal debate decision degree demand design desire
detail development
difference difficulty direction discovery discussion disease distance doubt dream duty economy education effect
effort emotion energy
environment error evening event evidence example exercise experience explanation fact failure fear feature feeling
focus freedom
friendship future game goal government grammar growth habit happiness harmony health heat help history holiday hope
hour humour idea
image impact importance improvement industry information injury interest issue job journey joy justice knowledge
language law lesson
level life list logic luck management manner market meaning measure memory message method minute mistake mix moment
money month mood
movement music nature need news noise number offer opinion opportunity option order pain part past pattern patience
peace pause people
period place plan pleasure point policy position power practice pressure price principle problem process product
progress project
promise proof purpose quality question range rate reason relationship research respect response result reward rhythm
risk role rule
safety schedule science season sense shape silence situation size skill sleep society solution sound space speed
spirit standard state
story strategy strength stress structure style subject success summer support surprise system taste teamwork
technique technology
temperature theory thing thought time title tone topic tradition training travel trip trouble trust truth type
understanding use value
variety version view voice volume vote walk warmth way week weight wisdom wish word work world year youth
""")

# base form, third person, past, -ing
VERBS = [
    tuple(forms.split("/"))
    for forms in words("""
add/adds/added/adding ask/asks/asked/asking bake/bakes/baked/baking balance/balances/balanced/balancing
bring/brings/brought/bringing
build/builds/built/building buy/buys/bought/buying call/calls/called/calling carry/carries/carried/carrying
catch/catches/caught/catching
change/changes/changed/changing check/checks/checked/checking choose/chooses/chose/choosing
clean/cleans/cleaned/cleaning
close/closes/closed/closing collect/collects/collected/collecting compare/compares/compared/comparing
cook/cooks/cooked/cooking
copy/copies/copied/copying count/counts/counted/counting cover/covers/covered/covering create/creates/created/creating
cut/cuts/cut/cutting describe/describes/described/describing design/designs/designed/designing draw/draws/drew/drawing
drive/drives/drove/driving drop/drops/dropped/dropping enjoy/enjoys/enjoyed/enjoying
explain/explains/explained/explaining
explore/explores/explored/exploring feed/feeds/fed/feeding fill/fills/filled/filling find/finds/found/finding
fix/fixes/fixed/fixing
fold/folds/folded/folding follow/follows/followed/following forget/forgets/forgot/forgetting give/gives/gave/giving
grow/grows/grew/growing guide/guides/guided/guiding handle/handles/handled/handling hear/hears/heard/hearing
help/helps/helped/helping
hide/hides/hid/hiding hold/holds/held/holding improve/improves/improved/improving join/joins/joined/joining
keep/keeps/kept/keeping
know/knows/knew/knowing learn/learns/learned/learning leave/leaves/left/leaving lift/lifts/lifted/lifting
like/likes/liked/liking
make/makes/made/making measure/measures/measured/measuring meet/meets/met/meeting mix/mixes/mixed/mixing
move/moves/moved/moving
need/needs/needed/needing notice/notices/noticed/noticing open/opens/opened/opening
organise/organises/organised/organising
paint/paints/painted/painting pick/picks/picked/picking place/places/placed/placing plan/plans/planned/planning
plant/plants/planted/planting practise/practises/practised/practising prepare/prepares/prepared/preparing
press/presses/pressed/pressing
protect/protects/protected/protecting pull/pulls/pulled/pulling push/pushes/pushed/pushing put/puts/put/putting
reach/reaches/reached/reaching read/reads/read/reading reduce/reduces/reduced/reducing
remember/remembers/remembered/remembering
remove/removes/removed/removing repair/repairs/repaired/repairing replace/replaces/replaced/replacing
save/saves/saved/saving
see/sees/saw/seeing send/sends/sent/sending set/sets/set/setting share/shares/shared/sharing show/shows/showed/showing
stir/stirs/stirred/stirring stop/stops/stopped/stopping store/stores/stored/storing study/studies/studied/studying
support/supports/supported/supporting take/takes/took/taking teach/teaches/taught/teaching test/tests/tested/testing
throw/throws/threw/throwing touch/touches/touched/touching trim/trims/trimmed/trimming try/tries/tried/trying
turn/turns/turned/turning understand/understands/understood/understanding use/uses/used/using
visit/visits/visited/visiting
wash/washes/washed/washing watch/watches/watched/watching wear/wears/wore/wearing weigh/weighs/weighed/weighing
write/writes/wrote/writing
""")
]

ADJECTIVES = words("""
able active ancient angry available bad basic beautiful big bitter black blue bold brave bright brown busy calm
careful cheap clean clear
clever cold colourful comfortable common complete complex cool correct creative curious curly damp dark deep delicate
different difficult
dry dull eager early easy effective elegant empty enormous essential even exact excellent expensive extra fair
familiar famous fancy fast
firm flat flexible fragile free fresh friendly full funny gentle giant golden good gradual great green grey handy
happy hard healthy heavy
helpful high honest hot huge hungry ideal important interesting kind large late lazy light little local lonely long
loose loud lovely low
lucky main mild modern narrow natural neat new nice noisy normal obvious odd old open ordinary original own pale
patient perfect plain
pleasant polite poor popular positive possible powerful practical pretty proud public pure quick quiet rare raw ready
real red regular
reliable rich right ripe rough round sad safe secure serious shallow sharp shiny short shy silent silver similar
simple sleepy slow small
smart smooth soft solid sour special steady steep strange strong sturdy sudden suitable sunny sweet tall tasty tender
thick thin tidy tiny
tired tough traditional typical unique unusual useful useless valuable various vast warm weak wet white whole wide
wild wise wonderful
wooden wrong yellow young
""")

ADVERBS = words("""
again almost already also always away badly better briefly carefully certainly clearly closely daily directly early
easily enough
especially even eventually evenly exactly fairly fast finally firmly first freely gently gradually happily here
immediately indeed instead
just later lightly mainly maybe mostly naturally nearly never normally now often once only originally outside partly
patiently perfectly
perhaps properly quickly quietly quite rarely rather really recently regularly safely simply slightly slowly smoothly
sometimes soon still
suddenly surely then there together tomorrow tonight twice usually very weekly well yesterday yet
""")

PEOPLE = items("""
the author|the teacher|my neighbour|the children|people|the team|your friends|the student|the chef|a scientist
the manager|the visitors
everyone|someone|the family|most readers|the gardener|the driver|the doctor|the players|a good writer|the customer
the engineers|the artist
the captain|the owner|the nurse|his brother|her sister|our class|the committee|a beginner|the coach|the crew
their parents|the guide|the guests
""")

SUBJECTS = items("""
cooking|gardening|painting|running|chess|astronomy|history|algebra|poetry|photography|knitting|woodwork|swimming
grammar|baking|geology
meditation|cycling|hiking|music theory|carpentry|origami|calligraphy|pottery|sewing|budgeting|public speaking
time management|birdwatching
bread making|home repair|houseplants|composting|yoga|drawing|creative writing|spelling|geography|physics|chemistry
biology|economics
philosophy|world literature|travel planning|camping|fishing|sailing|programming|statistics|web design|data analysis
machine learning
""")

PLACES = items("""
Lisbon|Kyoto|the Alps|Canada|northern Norway|the village|the old town|Peru|Morocco|the coast|Prague|the countryside
Vienna|Cape Town|Iceland
the city centre|the valley|Scotland|Vietnam|the desert|Chile|the museum|the library|the market|Florence|the harbour
Berlin|the campus|Kenya
""")

UNITS = items("""
grams|cups|minutes|hours|days|weeks|metres|kilometres|litres|teaspoons|tablespoons|degrees|percent|inches|feet|pages
steps|people|points
pounds|ounces|seconds|repetitions|sets|chapters|euros|dollars|millimetres|servings|slices
""")
